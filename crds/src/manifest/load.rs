//! Files of a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use super::yaml::{self, Position};
use super::{MAX_FILE, MAX_FILES, ManifestError, Manifests, Skipped, object};
use crate::field::Reason;

/// Reads the manifests of a directory, or of one file.
///
/// # Errors
/// Every mistake in every file; one is enough for no manifests.
pub fn load_dir(path: &Path) -> Result<Manifests, Vec<ManifestError>> {
    let mut all = Manifests::default();
    let mut errors = Vec::new();
    match files(path, &mut all.skipped) {
        Ok(files) => {
            for file in files {
                match read(Path::new(&file)) {
                    Ok(bytes) => add(&file, &bytes, &mut all, &mut errors),
                    Err(error) => errors.push(whole(&file, error.to_string())),
                }
            }
        }
        Err(error) => errors.push(whole(&path.display().to_string(), error.to_string())),
    }
    finish(all, errors)
}

/// Reads manifests that are in memory; `file` is what errors call them.
///
/// # Errors
/// As [`load_dir`].
pub fn parse(file: &str, bytes: &[u8]) -> Result<Manifests, Vec<ManifestError>> {
    let mut all = Manifests::default();
    let mut errors = Vec::new();
    add(file, bytes, &mut all, &mut errors);
    finish(all, errors)
}

fn finish(all: Manifests, mut errors: Vec<ManifestError>) -> Result<Manifests, Vec<ManifestError>> {
    let mut seen = BTreeMap::new();
    let meshes = all.distributions.iter().map(|item| {
        (
            object::label("Distribution", &item.object.metadata),
            &item.file,
            &item.places,
        )
    });
    let pools = all.pools.iter().map(|item| {
        (
            object::label("SchedulerPool", &item.object.metadata),
            &item.file,
            &item.places,
        )
    });
    let preheats = all.preheats.iter().map(|item| {
        (
            object::label("Preheat", &item.object.metadata),
            &item.file,
            &item.places,
        )
    });
    for (label, file, places) in meshes.chain(pools).chain(preheats) {
        let position = places.find("metadata.name");
        if let Some((first, line)) = seen.get(&label) {
            errors.push(ManifestError {
                file: file.clone(),
                position,
                object: label,
                field: "metadata.name".to_owned(),
                reason: Reason::Duplicate,
                message: format!("the same object stands in {first}:{line}"),
            });
        } else {
            seen.insert(label, (file, position.line));
        }
    }
    if errors.is_empty() {
        Ok(all)
    } else {
        Err(errors)
    }
}

fn add(file: &str, bytes: &[u8], all: &mut Manifests, errors: &mut Vec<ManifestError>) {
    if bytes.len() > MAX_FILE {
        return errors.push(whole(
            file,
            format!("{} bytes; at most {MAX_FILE} are read", bytes.len()),
        ));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return errors.push(whole(file, error.to_string())),
    };
    let documents = match yaml::read(text) {
        Ok(documents) => documents,
        Err(error) => {
            return errors.push(ManifestError {
                position: error.position,
                field: error.field,
                ..whole(file, error.message)
            });
        }
    };
    let known = all.distributions.len() + all.pools.len() + all.preheats.len() + all.skipped.len();
    if known + documents.len() > MAX_FILES {
        return errors.push(whole(file, format!("more than {MAX_FILES} objects")));
    }
    for document in documents {
        object::add(file, document, all, errors);
    }
}

fn whole(file: &str, message: String) -> ManifestError {
    ManifestError {
        file: file.to_owned(),
        position: Position::default(),
        object: String::new(),
        field: String::new(),
        reason: Reason::Malformed,
        message,
    }
}

/// Files to read, sorted by name. Entries that are not are reported, never passed over in silence.
fn files(path: &Path, skipped: &mut Vec<Skipped>) -> io::Result<Vec<String>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.display().to_string()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let extension = file.extension().and_then(|extension| extension.to_str());
        // Follows links: a mounted ConfigMap is made of them.
        let what = if hidden {
            // Editors' swap files, and the directories behind a ConfigMap's links.
            "hidden"
        } else if fs::metadata(&file).is_ok_and(|meta| meta.is_dir()) {
            "a directory"
        } else if !matches!(extension, Some("yaml" | "yml" | "json")) {
            "neither .yaml nor .yml nor .json"
        } else {
            found.push(file.display().to_string());
            continue;
        };
        skipped.push(Skipped {
            file: file.display().to_string(),
            what: what.to_owned(),
        });
        if found.len() + skipped.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} entries")));
        }
    }
    found.sort_unstable();
    skipped.sort_unstable_by(|a, b| a.file.cmp(&b.file));
    if found.len() > MAX_FILES {
        return Err(io::Error::other(format!("more than {MAX_FILES} files")));
    }
    Ok(found)
}

/// One byte more than is parsed, at most. Anything but a file could block or never end.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(file)?
        .take(MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
