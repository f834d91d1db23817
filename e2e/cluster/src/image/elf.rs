//! Which shared libraries a program names, and its processor: enough of ELF64 for that.

use super::Architecture;

/// What was read of a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) architecture: Architecture,
    /// Names of libraries; none in a static program.
    pub(super) needed: Vec<String>,
    /// The path of its dynamic linker.
    pub(super) interpreter: Option<String>,
}

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;

/// Reads it; none for what is no little-endian 64-bit ELF of a processor that images are made for.
pub(super) fn read(bytes: &[u8]) -> Option<Program> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let architecture = match half(bytes, 18)? {
        62 => Architecture::Amd64,
        183 => Architecture::Arm64,
        _ => return None,
    };
    let (start, size, count) = (long(bytes, 32)?, half(bytes, 54)?, half(bytes, 56)?);
    let headers: Vec<_> = (0..u64::from(count))
        .map_while(|n| Segment::read(bytes, start.checked_add(n * u64::from(size))?))
        .collect();
    let interpreter = headers.iter().find(|h| h.kind == INTERPRETER);
    let interpreter = interpreter.and_then(|h| text(bytes, h.offset));
    let mut needed = vec![];
    if let Some(dynamic) = headers.iter().find(|h| h.kind == DYNAMIC) {
        let entries: Vec<_> = (0..dynamic.length / 16)
            .map_while(|n| {
                let at = dynamic.offset.checked_add(n * 16)?;
                Some((long(bytes, at)?, long(bytes, at.checked_add(8)?)?))
            })
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let strings = entries
            .iter()
            .find(|(tag, _)| *tag == STRINGS)
            .map(|(_, at)| *at);
        if let Some(strings) = strings {
            // An address in memory: the segment that is loaded there says where it is in the file.
            let load = headers.iter().find(|h| {
                h.kind == LOAD && strings.checked_sub(h.address).is_some_and(|d| d < h.length)
            })?;
            let base = strings - load.address + load.offset;
            for (_, name) in entries.iter().filter(|(tag, _)| *tag == NEEDED) {
                needed.push(text(bytes, base.checked_add(*name)?)?);
            }
        }
    }
    Some(Program {
        architecture,
        needed,
        interpreter,
    })
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    length: u64,
}

impl Segment {
    fn read(bytes: &[u8], at: u64) -> Option<Self> {
        Some(Self {
            kind: u32::from_le_bytes(field(bytes, at)?),
            offset: long(bytes, at.checked_add(8)?)?,
            address: long(bytes, at.checked_add(16)?)?,
            length: long(bytes, at.checked_add(32)?)?,
        })
    }
}

fn field<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: u64) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn long(bytes: &[u8], at: u64) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn text(bytes: &[u8], at: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_the_c_library_and_says_how_it_is_linked() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = read(&own).unwrap();
        assert_eq!(program.architecture, Architecture::HERE);
        assert!(
            program.needed.contains(&"libc.so.6".to_owned()),
            "{program:?}"
        );
        assert!(program.interpreter.unwrap().contains("/ld-linux"));
    }

    #[test]
    fn what_is_cut_short_or_wrong_is_refused_without_harm() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in [0, 5, 6, 20, 63, 64, 100, 4096] {
            let _ = read(&own[..len]);
        }
        let mut wrong = own[..4096].to_vec();
        for at in 0..1024 {
            let before = wrong[at];
            wrong[at] = 0xff;
            let _ = read(&wrong);
            wrong[at] = before;
        }
        assert_eq!(read(b"#!/bin/sh\n"), None);
    }
}
