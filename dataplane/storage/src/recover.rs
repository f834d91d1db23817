//! Reading the store at start: what is held is learnt from headers and records. Data are read only
//! where a power loss may have taken them.

use std::collections::{HashMap, HashSet};
use std::io;

use dragonfly_proto::id::ContentKey;

use crate::bitmap::Bitmap;
use crate::entry::{Entry, Files};
use crate::error::{Result, StorageError};
use crate::format::{self, Fault, Header, RECORD, RECORDS_AT, Record, SLOT};
use crate::media::Media;
use crate::names::{self, Name, Part};
use crate::requests::Requests;

/// Records read at once when the index of a task is scanned.
const SCAN: usize = 256;
const MAX_REQUESTS_LOG: u64 = 64 << 20;

/// What a start found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) tasks: Vec<Entry>,
    pub(crate) requests: Requests,
    pub(crate) set_aside: usize,
}

/// Reads a whole small file.
pub(crate) fn read_file(media: &dyn Media, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = media.open(name)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{name} has {len} bytes, over {limit}"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads the index of the store, cleans up after a crash and sets aside what is not understood. A
/// task that cannot be read is that task's warning, never the store's failure.
pub(crate) fn recover(media: &dyn Media, boot: [u8; 16]) -> Result<Recovered> {
    let fail =
        |what: &str, e| StorageError::io(format_args!("store {}", media.describe()), what, e);
    let mut present: HashMap<ContentKey, HashSet<&'static str>> = HashMap::new();
    let mut aside = HashSet::new();
    let mut has_requests = false;
    for name in media.list().map_err(|e| fail("list its files", e))? {
        match Name::parse(&name) {
            Name::Task(key, part) => {
                present.entry(key).or_default().insert(part.suffix());
            }
            Name::Leftover => remove(media, &name),
            Name::Aside(original) => {
                aside.insert(original);
            }
            Name::Requests => has_requests = true,
            Name::Unknown => {
                tracing::debug!(store = %media.describe(), name, "not a file of the store")
            }
        }
    }
    readmit(media, &mut aside, &mut present);

    let mut tasks = Vec::new();
    for (key, parts) in &present {
        if !parts.contains(Part::Index.suffix()) || !parts.contains(Part::Data.suffix()) {
            tracing::info!(task = %key, "removing what a crash left of it");
            remove_task(media, key);
            continue;
        }
        match load(media, key, boot) {
            Ok(Ok(entry)) => tasks.push(entry),
            Ok(Err(fault @ (Fault::Foreign | Fault::UnknownVersion(_)))) => {
                tracing::warn!(task = %key, ?fault, "written by another release: setting it aside");
                aside.extend(set_task_aside(media, key));
            }
            Ok(Err(fault)) => {
                tracing::warn!(task = %key, ?fault, "its index is unusable: removing it");
                remove_task(media, key);
            }
            Err(e) => tracing::warn!(task = %key, error = %e, "cannot read it: leaving it alone"),
        }
    }
    let requests = load_requests(media, has_requests, &mut aside)
        .map_err(|e| fail("open the log of requests", e))?;
    Ok(Recovered {
        tasks,
        requests,
        set_aside: aside.len(),
    })
}

fn remove(media: &dyn Media, name: &str) {
    if let Err(e) = media.remove(name)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(store = %media.describe(), name, error = %e, "cannot remove a leftover");
    }
}

fn remove_task(media: &dyn Media, key: &ContentKey) {
    for part in Part::ALL {
        remove(media, &part.name(key));
    }
}

fn set_aside(media: &dyn Media, name: &str) -> Option<String> {
    match media.rename(name, &names::aside(name)) {
        Ok(()) => Some(name.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            tracing::warn!(store = %media.describe(), name, error = %e, "cannot set it aside");
            None
        }
    }
}

fn set_task_aside(media: &dyn Media, key: &ContentKey) -> Vec<String> {
    Part::ALL
        .into_iter()
        .filter_map(|part| set_aside(media, &part.name(key)))
        .collect()
}

/// Takes back tasks that another release set aside and this one understands: after a downgrade and
/// an upgrade nothing is fetched twice.
fn readmit(
    media: &dyn Media,
    aside: &mut HashSet<String>,
    present: &mut HashMap<ContentKey, HashSet<&'static str>>,
) {
    let indexes: Vec<ContentKey> = aside
        .iter()
        .filter_map(|name| match Name::parse(name) {
            Name::Task(key, Part::Index) => Some(key),
            _ => None,
        })
        .filter(|key| !present.contains_key(key))
        .collect();
    for key in indexes {
        let name = names::aside(&Part::Index.name(&key));
        if !matches!(read_header(media, &name), Ok(Ok(header)) if header.key == key) {
            continue;
        }
        // The index last: without it the rest is a leftover, with it the task is there.
        for part in [Part::Meta, Part::Data, Part::Index] {
            let name = part.name(&key);
            if aside.contains(&name) && media.rename(&names::aside(&name), &name).is_ok() {
                aside.remove(&name);
                present.entry(key).or_default().insert(part.suffix());
            }
        }
        tracing::info!(task = %key, "taking back what another release had set aside");
    }
}

fn read_header(media: &dyn Media, name: &str) -> io::Result<std::result::Result<Header, Fault>> {
    let file = media.open(name)?;
    let len = file.len()?.min(2 * SLOT as u64);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Header::decode(&bytes))
}

fn load(
    media: &dyn Media,
    key: &ContentKey,
    boot: [u8; 16],
) -> io::Result<std::result::Result<Entry, Fault>> {
    let header = match read_header(media, &Part::Index.name(key))? {
        Ok(header) if header.key == *key => header,
        Ok(_) => return Ok(Err(Fault::Corrupt)),
        Err(fault) => return Ok(Err(fault)),
    };
    let files = Files::new(
        media.open(&Part::Data.name(key))?,
        media.open(&Part::Index.name(key))?,
    );
    let data_len = files.data.len()?;
    if header.complete
        && header.geometry.total_len() == Some(data_len)
        && let Some(blocks) = header.geometry.total_blocks()
    {
        let bytes = data_len + u64::from(blocks) * RECORD as u64;
        let entry = Entry::new(header, Bitmap::full(blocks), bytes);
        entry
            .dirty
            .store(false, std::sync::atomic::Ordering::Release);
        return Ok(Ok(entry));
    }
    Ok(Ok(scan(header, &files, data_len, boot)?))
}

/// Learns from the records what is held.
fn scan(header: Header, files: &Files, data_len: u64, boot: [u8; 16]) -> io::Result<Entry> {
    let same_boot = boot != [0; 16] && header.boot == boot;
    let held = Bitmap::default();
    let (mut bytes, mut suspects, mut dropped) = (0, 0u32, Vec::new());
    for_each_record(&header, files, |record| {
        let end = header.geometry.offset(record.index) + u64::from(record.len);
        if !same_boot && record.epoch > header.durable_epoch {
            suspects += 1;
            if end > data_len || !matches_hash(&header, files, &record)? {
                dropped.push(record.index);
                return Ok(());
            }
        }
        if end <= data_len {
            held.insert(record.index);
            bytes += Entry::cost(record.len);
        }
        Ok(())
    })?;
    if held.count() == 0 && data_len > 0 {
        // Blocks that were never acknowledged, or an import that was cut off.
        files.data.discard()?;
    }
    let key = header.key;
    let entry = Entry::new(header, held, bytes);
    if !same_boot {
        if suspects > 0 {
            tracing::info!(task = %key, checked = suspects, dropped = dropped.len(),
                "checked blocks that a power loss might have taken");
        }
        if let Err(e) = settle(&entry, files, &dropped, suspects > 0, boot) {
            // The header still names the old boot, so the next start checks again.
            tracing::warn!(task = %key, error = %e, "cannot record what was checked");
        }
    }
    Ok(entry)
}

/// After the check: the wrong records go, the good ones become durable, and only then does the
/// header say so.
fn settle(
    entry: &Entry,
    files: &Files,
    dropped: &[u32],
    checked: bool,
    boot: [u8; 16],
) -> Result<()> {
    let fail = |e| StorageError::task_io(&entry.key, "record what was checked", e);
    for index in dropped {
        files
            .index
            .write_all_at(&[0; RECORD], format::record_offset(*index))
            .map_err(fail)?;
    }
    if checked {
        files.data.sync().map_err(fail)?;
        files.index.sync().map_err(fail)?;
    }
    let complete = entry.is_complete();
    entry.update_header(files, |h| {
        h.boot = boot;
        // The word that all is right may have reached the disk before all did.
        if !complete {
            h.verified = None;
        }
    })
}

fn matches_hash(header: &Header, files: &Files, record: &Record) -> io::Result<bool> {
    let mut data = vec![0; record.len as usize];
    match files
        .data
        .read_exact_at(&mut data, header.geometry.offset(record.index))
    {
        Ok(()) => Ok(*blake3::hash(&data).as_bytes() == record.hash),
        // An unreadable block is a lost block, not a lost task.
        Err(e) => {
            tracing::warn!(task = %header.key, block = record.index, error = %e, "cannot read it back");
            Ok(false)
        }
    }
}

fn for_each_record(
    header: &Header,
    files: &Files,
    mut each: impl FnMut(Record) -> io::Result<()>,
) -> io::Result<()> {
    let index_len = files.index.len()?;
    let limit = header.geometry.max_blocks();
    let in_file = index_len.saturating_sub(RECORDS_AT) / RECORD as u64;
    let count = u32::try_from(in_file).unwrap_or(u32::MAX).min(limit);
    let mut chunk = vec![0; SCAN * RECORD];
    let mut next = 0;
    while next < count {
        // Skip holes: a sparse task of 100 GiB has few records.
        let at = format::record_offset(next);
        match files.index.next_data(at)? {
            None => break,
            Some(found) if found > at => {
                let skipped = (found - at) / RECORD as u64;
                next = next.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
                if next >= count {
                    break;
                }
            }
            Some(_) => {}
        }
        let records = (count - next).min(SCAN as u32);
        let buffer = &mut chunk[..records as usize * RECORD];
        files
            .index
            .read_exact_at(buffer, format::record_offset(next))?;
        for (bytes, index) in buffer.chunks_exact(RECORD).zip(next..) {
            if let Some(record) = Record::decode(&header.key, header.geometry, index, bytes) {
                each(record)?;
            }
        }
        next += records;
    }
    Ok(())
}

fn load_requests(
    media: &dyn Media,
    present: bool,
    aside: &mut HashSet<String>,
) -> io::Result<Requests> {
    if !present {
        return Requests::create(media);
    }
    let why = match read_file(media, names::REQUESTS, MAX_REQUESTS_LOG) {
        Ok(bytes) => match format::decode_requests(&bytes) {
            Ok(records) => return Requests::resume(media, &records, bytes.len()),
            Err(Fault::Empty) => return Requests::create(media),
            Err(fault) => format!("{fault:?}"),
        },
        Err(e) => e.to_string(),
    };
    // Without it sources are asked once more; without the store nothing works.
    tracing::warn!(store = %media.describe(), why, "setting the log of requests aside");
    aside.extend(set_aside(media, names::REQUESTS));
    Requests::create(media)
}
