//! A real process, killed at random moments: what it had acknowledged is there.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use dragonfly_storage::*;

const DIR: &str = "DRAGONFLY_STORAGE_KILL_DIR";
const TASKS: u64 = 3;
const BLOCKS: u32 = 40;
const LEN: usize = (BLOCKS as usize - 1) * KIB64 as usize + 1234;
const ROUNDS: usize = 40;

/// Not a test by itself: the process that the test below starts and kills.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = Store::open(DiskMedia::new(dir).unwrap(), options(), NOW).unwrap();
    let say = |line: String| {
        // One write a line: a kill may cut the last one, which the parent then ignores.
        std::io::stdout()
            .write_all(format!("\n@{line}.\n").as_bytes())
            .unwrap();
    };
    say("open".to_owned());
    std::thread::scope(|scope| {
        for n in 0..TASKS {
            let (store, say) = (&store, &say);
            scope.spawn(move || {
                let data = content(n, LEN);
                let mut rng = fastrand::Rng::new();
                loop {
                    let task = store
                        .create_or_open(key(n), geometry(LEN as u64), b"meta")
                        .unwrap();
                    say(format!("created {n}"));
                    let mut order: Vec<u32> = (0..BLOCKS).collect();
                    rng.shuffle(&mut order);
                    for index in order {
                        put(&task, &data, index).unwrap();
                        say(format!("block {n} {index}"));
                        match rng.u8(..) {
                            0..10 => store.checkpoint().unwrap(),
                            10..20 => task.set_meta(&vec![n as u8; rng.usize(..3000)]).unwrap(),
                            _ => {}
                        }
                    }
                    drop(task);
                    if rng.u8(..3) == 0 {
                        say(format!("deleting {n}"));
                        store.delete(&key(n)).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    let dir = dir();
    let store_dir = dir.path().join("store");
    let mut held = vec![Vec::new(); TASKS as usize];
    let mut total = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(DIR, &store_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            out.lines()
                .map_while(|l| l.ok())
                .filter(|l| l.starts_with('@'))
                .collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(fastrand::u64(10..150)));
        assert!(
            child.try_wait().unwrap().is_none(),
            "round {round}: it ended by itself"
        );
        child.kill().unwrap();
        child.wait().unwrap();

        for line in reader.join().unwrap() {
            let Some(line) = line.strip_prefix('@').and_then(|l| l.strip_suffix('.')) else {
                continue;
            };
            let words: Vec<&str> = line.split(' ').collect();
            let n = words.get(1).map_or(0, |n| n.parse::<usize>().unwrap());
            match words[0] {
                "block" => held[n].push(words[2].parse::<u32>().unwrap()),
                "deleting" => held[n].clear(),
                _ => {}
            }
        }
        let store = Store::open(DiskMedia::new(&store_dir).unwrap(), options(), NOW).unwrap();
        for n in 0..TASKS {
            let acknowledged = &held[n as usize];
            total += acknowledged.len();
            let Some(task) = store.open_task(&key(n)).unwrap() else {
                assert!(acknowledged.is_empty(), "round {round}: task {n} is lost");
                continue;
            };
            for index in acknowledged {
                assert!(
                    task.is_held(*index),
                    "round {round}: block {index} of task {n} is lost"
                );
            }
            check_held(&task, &content(n, LEN));
            task.meta().unwrap();
        }
        let sum: u64 = store.list().iter().map(|t| t.bytes).sum();
        assert_eq!(store.usage().bytes, sum);
    }
    let names: Vec<_> = std::fs::read_dir(&store_dir).unwrap().collect();
    assert!(
        names.len() <= 2 + 3 * TASKS as usize,
        "leftovers: {names:?}"
    );
    assert!(total > 100, "the children hardly ran: {total} acknowledged");
}
