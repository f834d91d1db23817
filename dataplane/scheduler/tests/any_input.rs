//! Whatever nodes say in whatever order, the scheduler goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use dragonfly_proto::rpc::{self, Role, from_node::Message};
use kit::{World, hello, source};
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0..4_u8).prop_map(|n| vec![n; 32]),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

fn node_id() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => (0..7_u8).prop_map(|n| vec![n; 16]), 1 => prop::collection::vec(any::<u8>(), 0..20)]
}

fn geometry() -> impl Strategy<Value = Option<rpc::Geometry>> {
    let any =
        (any::<u32>(), any::<Option<u64>>()).prop_map(|(block_size, total_len)| rpc::Geometry {
            block_size,
            total_len,
        });
    prop_oneof![Just(None), Just(Some(kit::geometry())), any.prop_map(Some)]
}

fn failure() -> impl Strategy<Value = Option<rpc::Failure>> {
    let some = (-1..20_i32).prop_map(|code| rpc::Failure {
        code,
        message: "x".into(),
        http_status: 0,
    });
    prop_oneof![Just(None), some.prop_map(Some)]
}

fn join() -> impl Strategy<Value = Message> {
    let lists = (
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..140), 0..100),
        prop::collection::vec(node_id(), 0..50),
    );
    let emitter = prop::collection::vec(any::<u8>(), 0..250);
    let flags = (any::<[bool; 4]>(), emitter, key());
    (key(), geometry(), any::<u32>(), flags, lists).prop_map(
        |(content, geometry, held, (flags, emitter, request_key), (epochs, neighbours))| {
            let [complete, wants, sourced, compared] = flags;
            Message::Join(rpc::Join {
                id: 1,
                content,
                geometry,
                source: sourced.then(source),
                held,
                complete,
                wants,
                epochs,
                emitter,
                neighbours,
                resolver: vec![],
                request_key,
                compared,
            })
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        join(),
        join(),
        (any::<u64>(), key(), any::<bool>()).prop_map(|(id, request_key, s)| {
            Message::Resolve(rpc::Resolve {
                id,
                request_key,
                source: s.then(source),
                replicas: vec![],
                only_look: !s,
            })
        }),
        (0..30_u64, key(), geometry(), failure(), any::<u64>()).prop_map(
            |(id, content, geometry, failure, fresh_ms)| {
                let origin = rpc::OriginInfo {
                    validator: "v".into(),
                    fresh_ms,
                    ..Default::default()
                };
                Message::ResolveResult(rpc::ResolveResult {
                    id,
                    failure,
                    content,
                    geometry,
                    origin: Some(origin),
                })
            }
        ),
        (key(), any::<bool>())
            .prop_map(|(content, damaged)| Message::Leave(rpc::Leave { content, damaged })),
        (key(), any::<u32>(), prop::collection::vec(node_id(), 0..50)).prop_map(
            |(content, count, known)| {
                Message::NeedNeighbours(rpc::NeedNeighbours {
                    content,
                    count,
                    known,
                })
            }
        ),
        key().prop_map(|content| Message::NeedSource(rpc::NeedSource {
            content,
            ranges: vec![],
            source: None,
            request_key: vec![],
        })),
        key().prop_map(|content| Message::Compared(rpc::Compared { content })),
        (key(), node_id(), any::<bool>()).prop_map(|(content, node, banned)| {
            Message::LostNode(rpc::LostNode {
                content,
                node,
                reason: "x".into(),
                banned,
            })
        }),
        (key(), any::<u32>(), failure()).prop_map(|(content, epoch, failure)| {
            Message::LeaseResult(rpc::LeaseResult {
                content,
                epoch,
                failure,
            })
        }),
        (
            any::<u64>(),
            any::<u32>(),
            prop::collection::vec((key(), any::<u32>(), any::<bool>()), 0..300)
        )
            .prop_map(|(n, load, tasks)| {
                let tasks = tasks
                    .into_iter()
                    .map(|(content, held, complete)| rpc::TaskReport {
                        content,
                        held,
                        complete,
                    });
                Message::Report(rpc::Report {
                    from_origin: n,
                    from_seeds: n,
                    from_peers: n,
                    uploaded: n,
                    tasks_done: n,
                    tasks_failed: n,
                    load,
                    tasks: tasks.collect(),
                    ..rpc::Report::default()
                })
            }),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Connect(u8, bool, u8),
    Disconnect(u8),
    Say(u8, Box<Message>),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..7_u8, any::<bool>(), 0..3_u8).prop_map(|(n, s, k)| Step::Connect(n, s, k)),
        1 => (0..7_u8).prop_map(Step::Disconnect),
        12 => (0..7_u8, message()).prop_map(|(n, m)| Step::Say(n, Box::new(m))),
        2 => (1..4000_u16).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_messages_makes_it_panic(
        steps in prop::collection::vec(step(), 1..120),
        may_fetch in any::<bool>(),
    ) {
        let mut w = World::new(may_fetch);
        for step in steps {
            match step {
                Step::Connect(n, seed, key) => {
                    let role = if seed { Role::Seed } else { Role::Peer };
                    w.connect(hello(n, role, &format!("n{}", n / 2), key));
                }
                Step::Disconnect(n) => w.disconnect(n),
                Step::Say(n, message) => w.say(n, *message),
                Step::Pass(ms) => w.pass(f64::from(ms) / 1000.0),
            }
            let _ = w.core.inspect();
            w.said.clear();
        }
        (0..7).for_each(|n| w.disconnect(n));
        w.pass(640.0);
        let left = w.core.inspect();
        prop_assert!(left.nodes.is_empty() && left.tasks.is_empty(), "{left:?}");
    }
}
