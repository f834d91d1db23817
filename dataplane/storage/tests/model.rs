//! Random sequences of operations against a model that cannot be wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeSet, HashMap};

use common::*;
use dragonfly_proto::id::RequestKey;
use dragonfly_storage::*;
use proptest::prelude::*;

const TASKS: u64 = 4;
const BLOCKS: u32 = 3;
const LEN: usize = 2 * KIB64 as usize + 100;

#[derive(Debug, Clone)]
enum Op {
    Open(u64, bool),
    Release(u64),
    Write(u64, u32),
    Discard(u64, u32),
    SetLen(u64),
    SetMeta(u64, u8),
    Verify(u64),
    Delete(u64),
    Pin(u64, bool),
    Remember(u8, u64),
    Forget(u8),
    Checkpoint,
    Collect(u64),
    Restart(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let task = 0..TASKS;
    let block = 0..BLOCKS + 1;
    prop_oneof![
        4 => (task.clone(), any::<bool>()).prop_map(|(t, k)| Op::Open(t, k)),
        2 => task.clone().prop_map(Op::Release),
        12 => (task.clone(), block.clone()).prop_map(|(t, b)| Op::Write(t, b)),
        1 => (task.clone(), block).prop_map(|(t, b)| Op::Discard(t, b)),
        2 => task.clone().prop_map(Op::SetLen),
        1 => (task.clone(), any::<u8>()).prop_map(|(t, m)| Op::SetMeta(t, m)),
        1 => task.clone().prop_map(Op::Verify),
        1 => task.clone().prop_map(Op::Delete),
        1 => (task, any::<bool>()).prop_map(|(t, p)| Op::Pin(t, p)),
        1 => (any::<u8>(), 0..TASKS).prop_map(|(r, t)| Op::Remember(r % 4, t)),
        1 => any::<u8>().prop_map(|r| Op::Forget(r % 4)),
        1 => Just(Op::Checkpoint),
        1 => (0u64..100_000).prop_map(Op::Collect),
        2 => any::<bool>().prop_map(Op::Restart),
    ]
}

#[derive(Debug, Default, Clone)]
struct Expected {
    total: bool,
    held: BTreeSet<u32>,
    meta: Vec<u8>,
    verified: bool,
    pinned: bool,
}

impl Expected {
    fn complete(&self) -> bool {
        self.total && self.held.len() == BLOCKS as usize
    }
    fn may_write(&self, index: u32) -> bool {
        // Block 2 is short, so it needs the length; block 3 does not exist.
        index < 2 || index == 2 && self.total
    }
}

struct World {
    media: Faulty<MemoryMedia>,
    store: Option<Store>,
    handles: HashMap<u64, Task>,
    model: HashMap<u64, Expected>,
    requests: HashMap<u8, u64>,
    now: u64,
}

impl World {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn apply(&mut self, op: &Op) {
        let store = self.store().clone();
        match *op {
            Op::Open(n, known) => {
                let geometry = Geometry::new(KIB64, known.then_some(LEN as u64)).unwrap();
                let task = store.create_or_open(key(n), geometry, b"first").unwrap();
                let model = self.model.entry(n).or_insert_with(|| Expected {
                    meta: b"first".to_vec(),
                    ..Expected::default()
                });
                model.total |= known;
                self.handles.insert(n, task);
            }
            Op::Release(n) => drop(self.handles.remove(&n)),
            Op::Write(n, index) => self.with(n, |task, model, data| {
                let end = data.len().min((index as usize + 1) * KIB64 as usize);
                let bytes = data
                    .get(index as usize * KIB64 as usize..end)
                    .unwrap_or(&data[..10]);
                let result = task.write_block(index, bytes, hash(bytes), &proof_of(index));
                match result {
                    Ok(Written::New) => assert!(model.may_write(index) && model.held.insert(index)),
                    Ok(Written::AlreadyHeld) => assert!(model.held.contains(&index)),
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Invalid);
                        assert!(!model.may_write(index));
                    }
                }
            }),
            Op::Discard(n, index) => self.with(n, |task, model, _| {
                task.discard_block(index).unwrap();
                if model.held.remove(&index) {
                    model.verified = false;
                }
            }),
            Op::SetLen(n) => self.with(n, |task, model, _| {
                task.set_total_len(LEN as u64).unwrap();
                model.total = true;
            }),
            Op::SetMeta(n, m) => self.with(n, |task, model, _| {
                task.set_meta(&[m; 5]).unwrap();
                model.meta = vec![m; 5];
            }),
            Op::Verify(n) => self.with(n, |task, model, _| {
                assert_eq!(task.set_verified("sha256:1").is_ok(), model.complete());
                model.verified |= model.complete();
            }),
            Op::Delete(n) => {
                assert_eq!(
                    store.delete(&key(n)).unwrap(),
                    self.model.remove(&n).is_some()
                );
                self.handles.remove(&n);
            }
            Op::Pin(n, pin) => {
                let found = if pin {
                    store.pin(&key(n))
                } else {
                    store.unpin(&key(n))
                }
                .unwrap();
                assert_eq!(found, self.model.contains_key(&n));
                if let Some(model) = self.model.get_mut(&n) {
                    model.pinned = pin;
                }
            }
            Op::Remember(r, n) => {
                store
                    .remember_request(RequestKey([r + 1; 32]), key(n), self.now)
                    .unwrap();
                self.requests.insert(r, n);
            }
            Op::Forget(r) => {
                store.forget_request(&RequestKey([r + 1; 32])).unwrap();
                self.requests.remove(&r);
            }
            Op::Checkpoint => store.checkpoint().unwrap(),
            Op::Collect(later) => {
                self.now += later;
                self.evicted(&store.collect_garbage(self.now));
            }
            Op::Restart(rebooted) => {
                self.handles.clear();
                drop(store);
                self.store = None;
                if rebooted {
                    self.media
                        .faults
                        .boot
                        .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                self.store = Some(open(&self.media, self.now));
            }
        }
        let evicted = self.store().take_evicted();
        self.evicted(&evicted);
        self.check();
    }

    fn with(&mut self, n: u64, f: impl FnOnce(&Task, &mut Expected, &[u8])) {
        if let (Some(task), Some(model)) = (self.handles.get(&n), self.model.get_mut(&n)) {
            f(task, model, &content(n, LEN));
        }
    }

    fn evicted(&mut self, evicted: &[Evicted]) {
        for e in evicted {
            let n = (0..TASKS).find(|n| key(*n) == e.key).unwrap();
            assert!(!self.handles.contains_key(&n), "evicted in use");
            assert!(
                !self.model.remove(&n).unwrap().pinned,
                "evicted though pinned"
            );
        }
    }

    fn check(&self) {
        let store = self.store();
        let list = store.list();
        assert_eq!(list.len(), self.model.len());
        let usage = store.usage();
        assert_eq!(usage.bytes, list.iter().map(|t| t.bytes).sum::<u64>());
        assert!(usage.bytes <= usage.quota);
        for (n, model) in &self.model {
            let found = store.stat(&key(*n)).unwrap();
            let bytes: usize = model
                .held
                .iter()
                .map(|b| block(&[0; LEN], *b).len() + 320)
                .sum();
            assert_eq!(found.bytes, bytes as u64);
            assert_eq!(found.complete, model.complete());
            assert_eq!(found.pinned, model.pinned);
            assert_eq!(found.verified.is_some(), model.verified);
            assert_eq!(found.geometry.total_len().is_some(), model.total);
            if let Some(task) = self.handles.get(n) {
                assert_eq!(task.held().iter().collect::<BTreeSet<_>>(), model.held);
                assert_eq!(task.meta().unwrap(), model.meta);
                check_held(task, &content(*n, LEN));
            }
        }
        for r in 0..4 {
            let found = store
                .lookup_request(&RequestKey([r + 1; 32]))
                .map(|(k, _)| k);
            assert_eq!(found, self.requests.get(&r).map(|n| key(*n)));
        }
    }
}

fn open(media: &Faulty<MemoryMedia>, now: u64) -> Store {
    let options = Options {
        max_age: Some(std::time::Duration::from_secs(200)),
        // Room for everything that can be in use at once, not for everything.
        high_watermark_percent: 80,
        low_watermark_percent: 50,
        ..small(TASKS * (LEN as u64 + 3 * 320))
    };
    Store::open(media.clone(), options, now).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_agrees_with_the_model(ops in prop::collection::vec(op(), 1..80)) {
        let media = Faulty::new(MemoryMedia::new());
        let mut world = World {
            store: Some(open(&media, NOW)),
            media,
            handles: HashMap::new(),
            model: HashMap::new(),
            requests: HashMap::new(),
            now: NOW,
        };
        for op in &ops {
            world.apply(op);
        }
        world.apply(&Op::Restart(true));
    }
}
