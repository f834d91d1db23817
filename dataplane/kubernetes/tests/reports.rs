//! From what replicas counted to what status says: sums, rollout, failures, what people are told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use dragonfly_crds::Policy;
use dragonfly_crds::policy::MirrorPolicy;
use dragonfly_kubernetes::reports::{InForce, Reports, Status};
use dragonfly_proto::rpc::{
    FailureCount, Finding, FindingCount, PolicyCount, Sketch, Sums, failure::Code,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

fn clock(second: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::try_from(second).unwrap()).unwrap()
}

fn policy(revision: u64) -> InForce {
    (&Policy {
        uid: "u".to_owned(),
        revision,
        hash: format!("hash-{revision}"),
        ..Policy::default()
    })
        .into()
}

fn runs(revision: u64, nodes: u32, error: &str) -> PolicyCount {
    PolicyCount {
        uid: "u".to_owned(),
        revision,
        hash: format!("hash-{revision}"),
        nodes,
        error: error.to_owned(),
    }
}

fn sketch(replica: &str, number: u64) -> Sketch {
    Sketch {
        replica: replica.to_owned(),
        boot: 1,
        number,
        ..Sketch::default()
    }
}

fn moved(replica: &str, number: u64, origin: u64, peers: u64) -> Sketch {
    let sums = Sums {
        from_origin: origin,
        from_peers: peers,
        delivered: peers,
        tasks_done: 1,
        ..Sums::default()
    };
    Sketch {
        sums: Some(sums),
        ..sketch(replica, number)
    }
}

fn refused(origin: &str, http_status: u32, count: u64) -> FailureCount {
    FailureCount {
        code: Code::Origin.into(),
        http_status,
        origin: origin.to_owned(),
        count,
        finding: 0,
    }
}

#[test]
fn settings_that_keep_the_mirror_from_being_used_are_said_by_kind() {
    let mut holder = Holder::new();
    let found = |finding: Finding| FailureCount {
        code: Code::Settings.into(),
        count: 1,
        finding: finding.into(),
        ..FailureCount::default()
    };
    for number in 1..=3 {
        let failures = vec![
            found(Finding::ConfigPathList),
            found(Finding::RegistryMirrors),
        ];
        let told = Sketch {
            failures,
            ..sketch("scheduler-0", number)
        };
        holder.take(number, &told);
    }
    let status = holder.status(4, 1);
    let said: Vec<_> = status
        .failures
        .iter()
        .map(|f| (f.reason.as_str(), f.count))
        .collect();
    assert_eq!(said, [("MirrorUnused", 3), ("MirrorUnused", 3)]);
    let messages: String = status.failures.iter().map(|f| f.message.as_str()).collect();
    assert!(
        messages.contains("lists several directories") && messages.contains("registry.mirrors")
    );
    assert_eq!(holder.0.notices().len(), 2, "one Event a kind and minute");
}

fn mirrored() -> InForce {
    (&Policy {
        mirror: Some(MirrorPolicy::default()),
        ..Policy::default()
    })
        .into()
}

/// So many nodes were looked at, and this many found that.
fn looked_at(nodes: u32, findings: &[(Finding, u32)], replica: &str, number: u64) -> Sketch {
    let count = |(finding, nodes): &(Finding, u32)| FindingCount {
        finding: (*finding).into(),
        nodes: *nodes,
    };
    Sketch {
        looked_at: nodes,
        findings: findings.iter().map(count).collect(),
        ..sketch(replica, number)
    }
}

#[test]
fn whether_runtimes_can_use_the_mirror_is_a_condition_that_comes_and_goes() {
    use Finding::{ConfigPathList, RegistryMirrors};
    let mut h = Holder::new();
    let mut number = 0;
    let mut row = |h: &mut Holder, second: u64, said: &[Sketch]| {
        for sketch in said {
            number += 1;
            let sketch = Sketch {
                number,
                ..sketch.clone()
            };
            h.take(second, &sketch);
        }
        let status =
            h.0.status(SECOND * second as u32, clock(second), Some(&mirrored()));
        let [condition] = <[_; 1]>::try_from(status.conditions).unwrap();
        assert_eq!(condition.type_, "MirrorUsable");
        condition
    };
    let shown = |c: &Condition| (c.status.clone(), c.reason.clone());
    let pair = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());

    // Nobody looked: it is not known, and what may be the matter is said.
    let first = row(&mut h, 0, &[]);
    assert_eq!(shown(&first), pair("Unknown", "NotLookedAt"));
    assert!(first.message.contains("spec.mirror.nodeSelector"));
    let good = row(
        &mut h,
        1,
        &[looked_at(2, &[], "a", 0), looked_at(3, &[], "b", 0)],
    );
    assert_eq!(shown(&good), pair("True", "Usable"));
    assert!(good.message.contains("5 nodes"), "{}", good.message);

    // What is found is said at once, what most nodes found first; of all replicas together.
    let found = [
        looked_at(2, &[(ConfigPathList, 1), (RegistryMirrors, 1)], "a", 0),
        looked_at(3, &[(RegistryMirrors, 2)], "b", 0),
    ];
    let bad = row(&mut h, 2, &found);
    assert_eq!(shown(&bad), pair("False", "RegistryMirrors"));
    let order = [
        "on 3 of 5 nodes",
        "registry.mirrors",
        "on 1 of 5 nodes",
        "several",
        "mirror plan",
    ];
    let places = order.map(|part| {
        bad.message
            .find(part)
            .unwrap_or_else(|| panic!("{part}: {}", bad.message))
    });
    assert!(places.is_sorted(), "{}", bad.message);
    assert_eq!(bad.last_transition_time.0, clock(2));

    // A replica that starts anew has heard of no node yet: nothing is taken back for that.
    let still = row(&mut h, 10, &[looked_at(0, &[], "b", 0)]);
    assert_eq!(shown(&still), pair("False", "ConfigPathList"));
    let still = row(&mut h, 11, &[looked_at(0, &[], "a", 0)]);
    assert_eq!(shown(&still), pair("False", "ConfigPathList"));
    assert_eq!(still.last_transition_time.0, clock(2));

    // Mended: said once it has been so for a while.
    let mended = [looked_at(2, &[], "a", 0), looked_at(3, &[], "b", 0)];
    assert_eq!(row(&mut h, 20, &mended).status, "False");
    let good = row(&mut h, 31, &mended);
    assert_eq!(shown(&good), pair("True", "Usable"));
    assert_eq!(good.last_transition_time.0, clock(31));
    // Nobody looks any more.
    assert_eq!(
        row(
            &mut h,
            40,
            &[looked_at(0, &[], "a", 0), looked_at(0, &[], "b", 0)]
        )
        .status,
        "True"
    );
    assert_eq!(row(&mut h, 55, &[]).status, "Unknown");

    // No mirror is asked for: it is gone.
    let status = h.0.status(SECOND * 56, clock(56), Some(&policy(1)));
    assert!(status.conditions.is_empty(), "{:?}", status.conditions);
}

#[test]
fn who_takes_over_goes_on_with_the_condition_that_it_found() {
    let list = [(Finding::ConfigPathList, 1)];
    let mut first = Holder::new();
    first.take(0, &looked_at(1, &list, "a", 1));
    let left = first.0.status(SECOND, clock(1), Some(&mirrored()));
    // As the API server has it, beside the operator's conditions.
    let mut object = serde_json::to_value(&left).unwrap();
    let others = json!({"type": "Ready", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    object["conditions"]
        .as_array_mut()
        .unwrap()
        .insert(0, others);
    let found = Status::left_in(Some(&object)).unwrap();
    assert_eq!(found, left);

    let mut next = Reports::new(Duration::ZERO, Some(&found));
    // Before it knows a policy, and before anybody told it.
    assert_eq!(
        next.status(SECOND, clock(100), None).conditions,
        left.conditions
    );
    let mut status = |second: u64, clock_at: u64| {
        next.take(
            SECOND * second as u32,
            clock(clock_at),
            &looked_at(1, &list, "a", second),
        );
        next.status(SECOND * second as u32, clock(clock_at), Some(&mirrored()))
    };
    for second in 2..60 {
        assert_eq!(
            status(second, 100 + second).conditions,
            left.conditions,
            "{second}"
        );
    }
}

struct Holder(Reports);

impl Holder {
    fn new() -> Self {
        Self(Reports::new(Duration::ZERO, None))
    }

    fn take(&mut self, second: u64, sketch: &Sketch) {
        self.0.take(SECOND * second as u32, clock(second), sketch);
    }

    fn status(&mut self, second: u64, revision: u64) -> Status {
        let now = SECOND * second as u32;
        self.0.status(now, clock(second), Some(&policy(revision)))
    }
}

#[test]
fn replicas_sketches_add_up_and_one_that_is_sent_twice_counts_once() {
    let mut h = Holder::new();
    h.take(0, &moved("a", 1, 100, 900));
    h.take(0, &moved("b", 1, 0, 1000));
    h.take(1, &moved("b", 1, 0, 1000));
    let t = h.status(1, 1).traffic;
    assert_eq!((t.origin_bytes, t.peer_bytes, t.finished), (100, 1900, 2));
    assert_eq!((t.delivered_bytes, t.saved_percent), (1900, Some(94)));
    // Another process under the same name begins its numbers anew.
    let again = Sketch {
        boot: 2,
        ..moved("b", 1, 0, 100)
    };
    h.take(2, &again);
    assert_eq!(h.status(2, 1).traffic.peer_bytes, 2000);
}

#[test]
fn sums_go_on_from_what_an_earlier_writer_left() {
    let mut first = Holder::new();
    first.take(0, &moved("a", 1, 100, 900));
    first.take(
        0,
        &Sketch {
            peers: 3,
            policies: vec![runs(1, 3, "")],
            failures: vec![refused("https://a.example", 404, 2)],
            ..sketch("b", 1)
        },
    );
    let left = first.status(0, 1);
    assert_eq!(left.rollout.nodes, 3);

    let mut next = Holder(Reports::new(Duration::ZERO, Some(&left)));
    assert_eq!(next.status(1, 1), left, "nothing changed: nothing to write");
    next.take(2, &moved("a", 1, 1, 9));
    let status = next.status(2, 1);
    assert_eq!(
        (status.traffic.origin_bytes, status.traffic.peer_bytes),
        (101, 909)
    );
    assert_eq!(status.rollout.nodes, 3, "nodes are on their way to it");
    assert_eq!(next.status(20, 1).rollout.nodes, 0, "none came");
    // And the same kind of failure is the same entry.
    next.take(
        21,
        &Sketch {
            failures: vec![refused("https://a.example", 404, 5)],
            ..sketch("a", 2)
        },
    );
    let failures = next.status(21, 1).failures;
    assert_eq!((failures.len(), failures[0].count), (1, 7));
    assert!(failures[0].first_time.0 < failures[0].last_time.0);
}

#[test]
fn bandwidth_is_the_mean_of_half_a_minute_and_ends_with_the_traffic() {
    let mut h = Holder::new();
    let mut highest = 0;
    for second in 0..120 {
        // Nodes report every ten seconds, all at once.
        if second % 10 == 0 && second < 60 {
            h.take(second, &moved("a", second + 1, 0, 10_000));
        } else if second % 10 == 0 {
            h.take(second, &sketch("a", second + 1));
        }
        let t = h.status(second, 1).traffic;
        highest = highest.max(t.peer_bytes_per_second);
        if (40..60).contains(&second) {
            assert!(
                (800..=1200).contains(&t.peer_bytes_per_second),
                "{second}: {t:?}"
            );
        }
        if second > 95 {
            assert_eq!(t.peer_bytes_per_second, 0, "{second}");
        }
    }
    assert!(highest <= 2000, "{highest}");
}

#[test]
fn an_idle_mesh_says_the_same_for_ever() {
    let mut h = Holder::new();
    h.take(0, &moved("a", 1, 1000, 1000));
    let mut changes = 0;
    let mut last = Status::default();
    for second in 0..1000 {
        if second % 5 == 0 {
            let now = Sketch {
                peers: 2,
                seeds: 1,
                policies: vec![runs(1, 3, "")],
                ..sketch("a", second + 2)
            };
            h.take(second, &now);
        }
        let status = h.status(second, 1);
        if second > 60 && status != last {
            changes += 1;
        }
        last = status;
    }
    assert_eq!(changes, 0);
}

#[test]
fn the_rollout_counts_nodes_by_what_they_run_and_lists_few_revisions() {
    let mut h = Holder::new();
    h.take(
        0,
        &Sketch {
            seeds: 1,
            peers: 9,
            policies: vec![runs(7, 6, ""), runs(7, 2, "no media"), runs(6, 2, "")],
            ..sketch("a", 1)
        },
    );
    let old = (1..=6).map(|revision| runs(revision, 10, ""));
    let stranger = PolicyCount {
        uid: "another mesh".to_owned(),
        ..runs(7, 50, "")
    };
    // The same revision, of a cluster that was restored: other content.
    let restored = PolicyCount {
        hash: "other".to_owned(),
        ..runs(7, 4, "")
    };
    h.take(
        0,
        &Sketch {
            peers: 70,
            policies: old.chain([stranger, restored]).collect(),
            ..sketch("b", 1)
        },
    );
    let r = h.status(0, 7).rollout;
    assert_eq!((r.revision, r.nodes, r.seeds, r.peers), (7, 80, 1, 79));
    assert_eq!((r.acknowledged, r.refused), (6, 2));
    let listed: Vec<_> = r.revisions.iter().map(|r| (r.revision, r.nodes)).collect();
    assert_eq!(listed, [(7, 10), (6, 12), (5, 10), (4, 10), (3, 10)]);
    let failures = h.status(0, 7).failures;
    assert_eq!(failures[0].reason, "PolicyRefused");
    assert!(failures[0].message.contains("no media"));
    assert_eq!(
        failures[0].count, 2,
        "two nodes, however often they are counted"
    );
    let told = h.0.notices();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].note.starts_with("2 of 80 nodes"),
        "{}",
        told[0].note
    );
}

#[test]
fn a_replica_that_is_silent_is_forgotten_and_its_sums_are_not() {
    let mut h = Holder::new();
    let with_nodes = Sketch {
        peers: 5,
        active_tasks: 2,
        ..moved("a", 1, 10, 10)
    };
    h.take(0, &with_nodes);
    assert_eq!(h.status(29, 1).rollout.nodes, 5);
    let status = h.status(31, 1);
    assert_eq!((status.rollout.nodes, status.traffic.active_tasks), (0, 0));
    assert_eq!(status.traffic.origin_bytes, 10);
}

#[test]
fn of_failures_the_ten_seen_last_are_kept_for_a_day() {
    let mut h = Holder::new();
    for n in 0..100 {
        let failures = vec![refused(&format!("https://{n}.example"), 500, 1)];
        h.take(
            n,
            &Sketch {
                failures,
                ..sketch("a", n + 1)
            },
        );
    }
    let failures = h.status(100, 1).failures;
    assert_eq!(failures.len(), 10);
    assert_eq!(failures[0].origin.as_deref(), Some("https://99.example"));
    assert_eq!(failures[9].origin.as_deref(), Some("https://90.example"));
    assert!(h.status(100 + 86_400, 1).failures.is_empty());
}

#[test]
fn people_are_told_of_denied_origins_of_missing_seeds_and_of_unreadable_policies_once() {
    let mut h = Holder::new();
    let mut told = vec![];
    for second in 0..180 {
        let now = Sketch {
            peers: 3,
            failures: vec![
                refused("https://a.example", 403, 1),
                refused("https://a.example", 500, 1),
            ],
            ..sketch("a", second + 1)
        };
        h.take(second, &now);
        h.status(second, 1);
        told.extend(h.0.notices().into_iter().map(|n| n.reason));
    }
    h.0.unreadable(SECOND * 180, clock(180), 8, "needs features");
    told.extend(h.0.notices().into_iter().map(|n| n.reason));
    let of = |reason: &str| told.iter().filter(|r| **r == reason).count();
    assert_eq!(of("OriginDenied"), 3, "once a minute: {told:?}");
    assert_eq!(of("NoSeed"), 1, "{told:?}");
    assert_eq!(of("PolicyUnreadable"), 1, "{told:?}");
    assert_eq!(told.len(), 5);
    // A mesh without peers misses no seed, and one whose seed came back is watched anew.
    let seed = Sketch {
        seeds: 1,
        peers: 3,
        ..sketch("a", 1000)
    };
    h.take(181, &seed);
    h.status(181, 1);
    for second in 182..260 {
        h.take(
            second,
            &Sketch {
                peers: 3,
                ..sketch("a", second + 1000)
            },
        );
        h.status(second, 1);
    }
    assert_eq!(h.0.notices().len(), 1);
}

#[test]
fn whatever_replicas_say_nothing_overflows_and_status_stays_small() {
    let mut h = Holder::new();
    for n in 0..1000 {
        let text = "ü".repeat(4000);
        let failures = (0..300).map(|m| refused(&format!("{text}{n}{m}"), 403, u64::MAX));
        let wild = Sketch {
            peers: u32::MAX,
            seeds: u32::MAX,
            active_tasks: u32::MAX,
            policies: (0..100)
                .map(|r| runs(u64::MAX - r, u32::MAX, &text))
                .collect(),
            failures: failures.collect(),
            ..moved(&n.to_string(), u64::MAX, u64::MAX, u64::MAX)
        };
        h.take(n % 7, &wild);
    }
    let status = h.status(8, u64::MAX);
    let size = serde_json::to_vec(&status).unwrap().len();
    assert!(size < 16 << 10, "{size}");
    assert_eq!(status.traffic.origin_bytes, i64::MAX);
}

#[test]
fn what_an_earlier_writer_left_is_read_part_by_part() {
    assert_eq!(Status::left_in(None), None);
    assert_eq!(Status::left_in(Some(&json!({"conditions": []}))), None);
    let found = json!({
        "traffic": {"originBytes": 7, "unknown": true},
        "rollout": "nonsense",
        "failures": [{"reason": "NoSpace", "message": "m", "count": 2,
            "firstTime": "2026-01-01T00:00:00Z", "lastTime": "2026-01-01T00:00:00Z"}],
    });
    let status = Status::left_in(Some(&found)).unwrap();
    let read = (status.traffic.origin_bytes, status.failures[0].count);
    assert_eq!(read, (7, 2));
    // Written as it was read: a new writer of the same figures writes nothing.
    let again = serde_json::to_value(&status).unwrap();
    assert_eq!(Status::left_in(Some(&again)), Some(status));
}
