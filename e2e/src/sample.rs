//! Content to distribute, and digests of files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use crate::{Failed, Result};

/// A file that was written, and what it hashes to.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub len: u64,
    /// `sha256:<hex>`.
    pub digest: String,
}

/// Writes bytes that repeat nowhere near, the same for the same seed.
pub fn random(path: &Path, len: u64, seed: u64) -> Result<Sample> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut block = vec![0; 1 << 20];
    write(path, len, |_| {
        random.fill(&mut block);
        Ok(block.clone())
    })
}

/// Writes real files one after the other, each behind a line with its name, and over again until there
/// is enough.
pub fn concatenated(path: &Path, files: &[PathBuf], len: u64) -> Result<Sample> {
    let mut next = 0_usize;
    write(path, len, |_| {
        let source = files.get(next % files.len().max(1));
        let source = source.ok_or_else(|| Failed("there are no files to distribute".to_owned()))?;
        let mut bytes = format!("\n{next} {}\n", source.display()).into_bytes();
        next += 1;
        let read = File::open(source).and_then(|mut f| f.read_to_end(&mut bytes));
        read.map_err(|e| Failed::at(source.display(), e))?;
        Ok(bytes)
    })
}

/// Files in a directory and below it that are worth sending, the largest first.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.is_file() && meta.len() >= 64 << 10 {
                found.push((meta.len(), entry.path()));
            }
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// `sha256:<hex>` of a file.
pub fn digest(path: &Path) -> Result<String> {
    let wrong = |e| Failed::at(path.display(), e);
    let mut file = File::open(path).map_err(wrong)?;
    let mut context = Context::new(&SHA256);
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(wrong)? {
            0 => return Ok(hex(context)),
            n => context.update(&block[..n]),
        }
    }
}

fn write(path: &Path, len: u64, mut more: impl FnMut(u64) -> Result<Vec<u8>>) -> Result<Sample> {
    let wrong = |e| Failed::at(path.display(), e);
    let mut file = File::create(path).map_err(wrong)?;
    let mut context = Context::new(&SHA256);
    let mut left = len;
    while left > 0 {
        let mut bytes = more(left)?;
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        context.update(&bytes);
        file.write_all(&bytes).map_err(wrong)?;
        left -= bytes.len() as u64;
    }
    Ok(Sample {
        path: path.to_owned(),
        len,
        digest: hex(context),
    })
}

/// The digest of bytes, as `sha256:<hex>`.
pub fn digest_of(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    hex(context)
}

/// A finished digest as `sha256:<hex>`.
pub fn hex(context: Context) -> String {
    let digest = context.finish();
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_says_its_length_and_digest_and_files_repeat_until_there_is_enough() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Failed::at("temporary directory", e))?;
        let one = random(&dir.path().join("one"), 100_000, 1)?;
        assert_eq!(
            std::fs::metadata(&one.path).map(|m| m.len()).ok(),
            Some(100_000)
        );
        assert_eq!(one.digest, digest(&one.path)?);
        let files = files_below(dir.path());
        assert_eq!(files, [one.path]);
        let all = concatenated(&dir.path().join("all"), &files, 250_000)?;
        assert_eq!(all.digest, digest(&all.path)?);
        assert!(concatenated(&dir.path().join("none"), &[], 1).is_err());
        Ok(())
    }
}
