use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;

const AUDIENCE: &str = "dragonfly.d7y.io/u";

fn known() -> Mesh {
    Mesh {
        uid: "u".to_owned(),
        namespace: "n".to_owned(),
        name: "m".to_owned(),
        seeds: Seeds::OfPods,
        revoked: vec![],
        join_secret: "5ec2e7".to_owned(),
    }
}

/// What the API server says of a good token of a part.
fn review(part: &str) -> TokenReviewStatus {
    let extra = [
        (POD_NAME, format!("m-{part}-0-5d4f-x")),
        (POD_UID, "pod-1".to_owned()),
        (NODE_NAME, "worker-1".to_owned()),
    ];
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        error: None,
        user: Some(UserInfo {
            username: Some(format!("system:serviceaccount:n:m-{part}")),
            extra: Some(extra.map(|(k, v)| (k.to_owned(), vec![v])).into()),
            ..UserInfo::default()
        }),
    }
}

fn extra(status: &mut TokenReviewStatus) -> &mut BTreeMap<String, Vec<String>> {
    status.user.as_mut().unwrap().extra.as_mut().unwrap()
}

#[test]
fn a_token_says_role_machine_and_identity() {
    let mut known = known();
    let seed = judge(&known, AUDIENCE, &review("seed"), rpc::Role::Seed).unwrap();
    assert_eq!(seed.who.uri(), "spiffe://u/seed/worker-1");
    assert_eq!(
        seed.node,
        Some(assigned("u", "seed", Subject::Pod("pod-1")))
    );
    known.seeds = Seeds::Slots;
    let slot = judge(&known, AUDIENCE, &review("seed"), rpc::Role::Seed).unwrap();
    assert_eq!(slot.node, Some(assigned("u", "seed", Subject::Slot(0))));
    known.seeds = Seeds::OfMachines;
    let machine = judge(&known, AUDIENCE, &review("seed"), rpc::Role::Seed).unwrap();
    let wanted = assigned("u", "seed", Subject::Machine("worker-1"));
    assert_eq!(machine.node, Some(wanted));
    let peer = judge(&known, AUDIENCE, &review("peer"), rpc::Role::Peer).unwrap();
    let id = assigned("u", "peer", Subject::Machine("worker-1"));
    assert_eq!((peer.node, peer.names), (Some(id), vec![node_name(&id)]));
    let scheduler = judge(&known, AUDIENCE, &review("scheduler"), rpc::Role::Scheduler).unwrap();
    assert_eq!(scheduler.names, [SCHEDULER_NAME]);
}

#[test]
fn whoever_is_not_who_he_asks_as_gets_nothing_and_is_told_why() {
    type Change = fn(&mut TokenReviewStatus, &mut Mesh);
    let rows: [(&str, rpc::Role, Change, &str); 12] = [
        (
            "a token of a pod that is gone",
            rpc::Role::Peer,
            |s, _| {
                s.authenticated = Some(false);
                s.error = Some("service account token has been invalidated".to_owned());
            },
            "has been invalidated",
        ),
        (
            "no word",
            rpc::Role::Peer,
            |s, _| s.authenticated = None,
            "does not take",
        ),
        (
            "another audience",
            rpc::Role::Peer,
            |s, _| {
                s.audiences = Some(vec!["https://kubernetes.default.svc".to_owned()]);
            },
            "did not judge the token for",
        ),
        (
            "an API server that knows no audiences",
            rpc::Role::Peer,
            |s, _| s.audiences = None,
            "did not judge the token for",
        ),
        (
            "a peer that wants to be a seed",
            rpc::Role::Seed,
            |_, _| {},
            "makes a peer",
        ),
        (
            "a peer that wants to be a scheduler",
            rpc::Role::Scheduler,
            |_, _| {},
            "makes a peer",
        ),
        (
            "a peer that wants to look",
            rpc::Role::Viewer,
            |_, _| {},
            "makes a peer",
        ),
        (
            "another namespace",
            rpc::Role::Peer,
            |s, _| {
                s.user.as_mut().unwrap().username =
                    Some("system:serviceaccount:x:m-peer".to_owned());
            },
            "x/m-peer is of no part",
        ),
        (
            "a person",
            rpc::Role::Peer,
            |s, _| {
                s.user.as_mut().unwrap().username = Some("jane".to_owned());
            },
            "no ServiceAccount",
        ),
        (
            "a token of kubectl",
            rpc::Role::Peer,
            |s, _| extra(s).clear(),
            "bound to no pod",
        ),
        (
            "an old cluster",
            rpc::Role::Peer,
            |s, _| _ = extra(s).remove(NODE_NAME),
            "on which node",
        ),
        (
            "a revoked machine",
            rpc::Role::Peer,
            |_, k| k.revoked.push("worker-1".to_owned()),
            "worker-1 is revoked",
        ),
    ];
    for (what, role, change, says) in rows {
        let (mut status, mut known) = (review("peer"), known());
        change(&mut status, &mut known);
        let why = judge(&known, AUDIENCE, &status, role).unwrap_err();
        assert!(why.contains(says), "{what}: {why}");
    }
    judge(&known(), AUDIENCE, &review("peer"), rpc::Role::Peer).unwrap();
}

#[test]
fn a_pod_of_a_slot_is_known_by_its_name() {
    for (pod, slot_of) in [
        ("m-seed-0-5d4f-x", Some(0)),
        ("m-seed-12-5d4f-x", Some(12)),
        ("m-seed-5d4f-x", None),
        ("m-seed", None),
        ("other-seed-0-a-b", None),
    ] {
        assert_eq!(slot("m", pod), slot_of, "{pod}");
    }
}

#[test]
fn a_join_token_makes_seeds_peers_and_viewers_and_nobody_a_scheduler() {
    let ask = |token: &str, role: rpc::Role| rpc::IssueRequest {
        token: token.to_owned(),
        node: vec![7; 16],
        role: role.into(),
        ..rpc::IssueRequest::default()
    };
    let mut known = known();
    let joined_as = |known: &Mesh, role| joined(known, &ask("5ec2e7", role));
    for role in [rpc::Role::Seed, rpc::Role::Peer, rpc::Role::Viewer] {
        joined_as(&known, role).unwrap();
    }
    for role in [rpc::Role::Scheduler, rpc::Role::Unspecified] {
        assert!(joined_as(&known, role).is_err());
    }
    for wrong in ["", "5ec2e", "5ec2e7a", "5EC2E7"] {
        let status = joined(&known, &ask(wrong, rpc::Role::Peer)).unwrap_err();
        assert!(status.message().contains("join token"));
    }
    known.revoked.push("07".repeat(16));
    let status = joined_as(&known, rpc::Role::Peer).unwrap_err();
    assert!(status.message().contains("revoked"));
}

#[test]
fn a_token_for_somebody_else_is_seen_without_asking_the_api_server() {
    use base64::Engine as _;
    let token = |payload: &str| {
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload);
        format!("x.{text}.y")
    };
    let one = claims(&token(r#"{"aud":"a","exp":5}"#)).unwrap();
    assert_eq!(
        (one.audiences, one.expires),
        (vec!["a".to_owned()], Some(5))
    );
    let two = claims(&token(r#"{"aud":["a","b"]}"#)).unwrap();
    assert_eq!(two.audiences, ["a", "b"]);
    for bad in [
        "",
        ".",
        "a.b.c",
        "a.!.c",
        &token("[]"),
        &token("{}"),
        &"a.".repeat(20_000),
    ] {
        assert!(claims(bad).is_err());
    }
}
