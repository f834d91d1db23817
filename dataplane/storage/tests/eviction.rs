//! Who has to go when room is needed, on every medium.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod common;

use common::*;
use dragonfly_storage::*;

suite!(
    the_quota_evicts_the_least_recently_used,
    pinned_and_open_tasks_stay,
    age_evicts_and_use_refreshes,
    the_order_of_use_survives_a_restart,
    a_jump_of_the_clock_evicts_nothing,
    a_lower_quota_is_obeyed_live,
);

/// Four blocks a task.
fn fill(store: &Store, n: u64) -> Result<Task> {
    let data = content(n, 4 * KIB64 as usize);
    let task = store.create_or_open(key(n), geometry(data.len() as u64), b"m")?;
    for index in 0..4 {
        put(&task, &data, index)?;
    }
    Ok(task)
}

fn tasks(store: &Store) -> Vec<u64> {
    (0..100)
        .filter(|n| store.stat(&key(*n)).is_some())
        .collect()
}

const TASK: u64 = 4 * (KIB64 as u64 + 320);

fn the_quota_evicts_the_least_recently_used(open: Open<'_>) {
    let store = open(Options {
        high_watermark_percent: 100,
        low_watermark_percent: 60,
        ..small(5 * TASK)
    })
    .unwrap();
    for n in 0..5 {
        fill(&store, n).unwrap().touch(NOW + n);
    }
    assert_eq!(tasks(&store), vec![0, 1, 2, 3, 4]);
    store.open_task(&key(0)).unwrap().unwrap().touch(NOW + 100);
    fill(&store, 5).unwrap().touch(NOW + 101);
    // Down to three tasks' worth, the open one included: 1, 2 and 3 were the oldest.
    assert_eq!(tasks(&store), vec![0, 4, 5]);
    let evicted = store.take_evicted();
    assert_eq!(
        evicted.iter().map(|e| e.key).collect::<Vec<_>>(),
        vec![key(1), key(2), key(3)]
    );
    assert!(
        evicted
            .iter()
            .all(|e| e.bytes == TASK && e.reason == EvictReason::Space)
    );
    assert!(store.usage().bytes <= 5 * TASK);
    fill(&store, 1).unwrap();
    drop(store);
    assert_eq!(tasks(&open(options()).unwrap()), vec![0, 1, 4, 5]);
}

fn pinned_and_open_tasks_stay(open: Open<'_>) {
    let store = open(small(3 * TASK)).unwrap();
    drop(fill(&store, 0).unwrap());
    store.pin(&key(0)).unwrap();
    let held = fill(&store, 1).unwrap();
    let e = fill(&store, 2)
        .and_then(|_two| fill(&store, 3).map(drop))
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::QuotaExceeded);
    assert!(e.kind().is_temporary());
    check_held(&held, &content(1, 4 * KIB64 as usize));
    assert!(store.usage().bytes <= 3 * TASK);
    drop(held);
    drop(fill(&store, 3).unwrap());
    assert!(tasks(&store).contains(&0) && tasks(&store).contains(&3));
    store.unpin(&key(0)).unwrap();
    drop((fill(&store, 4).unwrap(), fill(&store, 5).unwrap()));
    assert!(!tasks(&store).contains(&0));
}

fn age_evicts_and_use_refreshes(open: Open<'_>) {
    let hour = 3_600_000;
    let day = std::time::Duration::from_secs(24 * 3600);
    let store = open(Options {
        max_age: Some(day),
        ..options()
    })
    .unwrap();
    for n in 0..4 {
        drop(fill(&store, n).unwrap());
    }
    store.pin(&key(3)).unwrap();
    let open_one = store.open_task(&key(2)).unwrap().unwrap();
    let mut gone = Vec::new();
    for h in 1..=30 {
        gone.extend(store.collect_garbage(NOW + h * hour));
        if h == 10 {
            store
                .open_task(&key(1))
                .unwrap()
                .unwrap()
                .read_checked(0, &mut [0; 1])
                .unwrap();
        }
    }
    assert_eq!(
        gone,
        vec![Evicted {
            key: key(0),
            bytes: TASK,
            reason: EvictReason::Age
        }]
    );
    assert_eq!(store.stat(&key(1)).unwrap().idle.as_secs(), 20 * 3600);
    drop(open_one);
    store.collect_garbage(NOW + 40 * hour);
    assert_eq!(
        tasks(&store),
        vec![1, 3],
        "the released one is as old as its last use"
    );
}

fn the_order_of_use_survives_a_restart(open: Open<'_>) {
    let store = open(options()).unwrap();
    for n in 0..3 {
        drop(fill(&store, n).unwrap());
    }
    store.checkpoint().unwrap();
    store
        .open_task(&key(0))
        .unwrap()
        .unwrap()
        .touch(NOW + 200_000);
    store.checkpoint().unwrap();
    drop(store);
    let store = open(small(2 * TASK)).unwrap();
    assert_eq!(store.stat(&key(1)).unwrap().idle.as_secs(), 200);
    store.collect_garbage(NOW);
    assert_eq!(tasks(&store), vec![0]);
}

fn a_jump_of_the_clock_evicts_nothing(open: Open<'_>) {
    let store = open(Options {
        max_age: Some(std::time::Duration::from_secs(86400)),
        ..options()
    })
    .unwrap();
    drop(fill(&store, 0).unwrap());
    for now in [NOW + 10_u64.pow(12), 0, NOW, u64::MAX, 5] {
        assert!(store.collect_garbage(now).is_empty());
    }
}

fn a_lower_quota_is_obeyed_live(open: Open<'_>) {
    let store = open(options()).unwrap();
    for n in 0..8 {
        drop(fill(&store, n).unwrap());
    }
    store.set_options(small(4 * TASK)).unwrap();
    assert_eq!(store.collect_garbage(NOW).len(), 5);
    assert!(store.usage().bytes <= 4 * TASK * 85 / 100);
    assert_eq!(store.usage().quota, 4 * TASK);
    let wrong = Options {
        low_watermark_percent: 99,
        ..options()
    };
    assert_eq!(
        store.set_options(wrong).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}
