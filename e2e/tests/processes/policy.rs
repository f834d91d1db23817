//! Who may join a mesh, and what edits of its manifests do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{LIMIT, MIB, Setting, run, text, until};
use dragonfly_e2e::manifests;
use dragonfly_e2e::mesh::{Mesh, Options, Part, port};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::{Process, log};
use dragonfly_e2e::{binary, get::Get, http, sample};
use rustix::process::Signal;
use serde_json::Value;

async fn revision(s: &Setting, socket: &Path) -> u64 {
    let top = s.run(socket, &["top", "--output", "json"]).await;
    let json: Value = serde_json::from_slice(&top.stdout).unwrap_or_default();
    json["policyRevision"].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_reaches_every_node_and_a_wrong_one_changes_nothing_but_says_where_it_is_wrong() {
    let s = Setting::new(
        &Options {
            peers: 2,
            ..Options::default()
        },
        8 * MIB,
        0,
    )
    .await;
    let socket = s.mesh.peers[0].socket.clone();
    let (before, file) = (
        revision(&s, &socket).await,
        s.mesh.manifests.join("distribution.yaml"),
    );
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{good}  limits:\n    upload: 4Mi\n")).unwrap();
    for node in s.mesh.peers.iter().chain(&s.mesh.seeds) {
        until("the node runs the new policy", || async {
            revision(&s, &node.socket).await > before
        })
        .await;
    }
    let edited = revision(&s, &socket).await;
    std::fs::write(&file, format!("{good}  limits:\n    uplaod: 8Mi\n")).unwrap();
    until("the scheduler complains", || async {
        s.mesh.scheduler.said().contains("uplaod")
    })
    .await;
    let said = s.mesh.scheduler.said();
    let line = good.lines().count() + 2;
    let place = format!("distribution.yaml:{line}");
    assert!(
        said.contains(&place) && said.contains("spec.limits"),
        "{said}"
    );
    assert_eq!(revision(&s, &socket).await, edited);
    // The limit is in force: one seed at 4 MiB/s feeds two peers that share what they have.
    let ended = s.all_have(s.all_get()).await;
    assert!(
        ended.iter().any(|e| e.took > Duration::from_millis(1200)),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_starts_again_over_wrong_manifests_goes_on_with_the_policy_it_had() {
    let options = Options::default();
    let mut s = Setting::new(&options, MIB, 0).await;
    let (socket, file) = (
        s.mesh.peers[0].socket.clone(),
        s.mesh.manifests.join("distribution.yaml"),
    );
    let good = std::fs::read_to_string(&file).unwrap();
    let kept = s.mesh.scheduler.state.join("policy.json");
    until("the first policy is kept", || async { kept.exists() }).await;
    std::fs::write(&file, format!("{good}  limits:\n    upload: 64Mi\n")).unwrap();
    let before = revision(&s, &socket).await;
    until("the node runs the new policy", || async {
        revision(&s, &socket).await > before
    })
    .await;
    let edited = revision(&s, &socket).await;
    std::fs::write(&file, format!("{good}  limits:\n    uplaod: 8Mi\n")).unwrap();
    s.mesh.scheduler.kill();
    s.mesh.scheduler.start().unwrap();
    s.mesh.scheduler.ready().await.unwrap();
    let said = s.mesh.scheduler.said();
    assert!(
        said.contains("uplaod") && said.contains("from before this start"),
        "{said}"
    );
    s.all_have(s.all_get()).await;
    assert_eq!(revision(&s, &socket).await, edited);
    // Mended, the manifests count again.
    std::fs::write(&file, format!("{good}  limits:\n    upload: 32Mi\n")).unwrap();
    until("the node runs the mended policy", || async {
        revision(&s, &socket).await > edited
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_to_keep_content_in_memory_is_started_anew_and_then_does() {
    let mut mesh = Mesh::prepare(&Options {
        peers: 1,
        spec: "  storage: {media: Memory, quota: 256Mi}\n".to_owned(),
        ..Options::default()
    })
    .unwrap();
    mesh.scheduler.start().unwrap();
    mesh.scheduler.ready().await.unwrap();
    for node in mesh.seeds.iter_mut().chain(&mut mesh.peers) {
        node.start().unwrap();
        let ended = tokio::time::timeout(LIMIT, async {
            loop {
                match node.ready().await {
                    // Until it has heard what it is to do.
                    Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(ended) => return ended.to_string(),
                }
            }
        });
        let ended = ended.await.unwrap();
        assert!(ended.contains("exit status: 0"), "{ended}");
        node.start().unwrap();
        node.ready().await.unwrap();
    }
    let origin = Origin::start(0).await.unwrap();
    let source = sample::random(&mesh.dir().join("source"), 8 * MIB, 1).unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    let get = mesh.get(0, &url, &[]).unwrap();
    let (output, ended) = (get.output.clone(), get.wait(LIMIT).await.unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.complaint());
    assert_eq!(sample::digest(&output).unwrap(), source.digest);
    for node in mesh.seeds.iter().chain(&mesh.peers) {
        let files = sample::files_below(&node.state);
        let kept = files.iter().map(|f| f.metadata().map_or(0, |m| m.len()));
        assert!(kept.sum::<u64>() < MIB, "{}: {files:?}", node.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_mirrors_port_is_taken_serves_its_clients_and_takes_the_port_when_it_is_free()
{
    let at = port().unwrap();
    let holder = std::net::TcpListener::bind(at).unwrap();
    let mut mesh = Mesh::prepare(&Options {
        peers: 1,
        spec: format!("  mirror: {{port: {}}}\n", at.port()),
        ..Options::default()
    })
    .unwrap();
    mesh.scheduler.start().unwrap();
    mesh.scheduler.ready().await.unwrap();
    let mut peer = mesh.peers.remove(0);
    peer.start().unwrap();
    // What a DaemonSet's rollout waits for, and what clients need.
    tokio::time::timeout(LIMIT, peer.ready())
        .await
        .unwrap()
        .unwrap();
    assert!(peer.socket.exists());
    assert!(peer.said().contains(&at.to_string()), "it says which");
    drop(holder);
    until("the mirror answers", || async {
        let answer = http::get(at, "/healthz").await;
        answer.is_ok_and(|(status, _)| status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_had_a_policy_serves_nobody_until_it_has_one() {
    let mut mesh = Mesh::prepare(&Options {
        seeds: 0,
        peers: 1,
        plaintext: true,
        ..Options::default()
    })
    .unwrap();
    let mut peer = mesh.peers.remove(0);
    peer.start().unwrap();
    until("the peer runs", || async {
        peer.said().contains("node is up")
    })
    .await;
    // Longer than it takes a node that serves to do so.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !peer.socket.exists(),
        "it serves clients by nobody's policy"
    );
    let (status, _) = http::get(peer.admin, "/readyz").await.unwrap();
    assert_eq!(status, 503);
    mesh.scheduler.start().unwrap();
    peer.ready().await.unwrap();
    until("clients are served", || async { peer.socket.exists() }).await;

    // From then on by what it kept, whoever is away.
    mesh.scheduler.kill();
    peer.terminate(LIMIT).await.unwrap();
    peer.start().unwrap();
    until("clients are served again", || async {
        peer.socket.exists()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_token_or_with_another_meshs_are_turned_away() {
    let mesh = Mesh::start(&Options {
        peers: 1,
        ..Options::default()
    })
    .await
    .unwrap();
    let mut other = Mesh::prepare(&Options {
        seeds: 0,
        peers: 0,
        ..Options::default()
    })
    .unwrap();
    other.scheduler.start().unwrap();
    other.scheduler.ready().await.unwrap();
    let token = other.scheduler.state.join("mesh/join-token");
    let strangers = [("none", None), ("other", Some(token.as_path()))];
    let mut strangers: Vec<_> = strangers
        .into_iter()
        .map(|(name, token)| mesh.another_with(name, Part::Peer, token).unwrap())
        .collect();
    strangers.iter_mut().for_each(|s| s.start().unwrap());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(
        mesh.scheduler
            .metric("dragonfly_scheduler_nodes")
            .await
            .unwrap(),
        2.0
    );
    for stranger in &strangers {
        let ready = http::get(stranger.admin, "/readyz").await;
        assert!(!matches!(ready, Ok((200, _))), "{} is ready", stranger.name);
    }
    let said = strangers[0].said();
    assert!(
        said.contains("WARN") && said.contains("--join-token-file"),
        "{said}"
    );
    // Whoever is turned away ends at once and says why.
    let code = strangers[1].ended(Duration::from_secs(1)).await.unwrap();
    let said = strangers[1].said();
    assert!(code == Some(1) && said.contains("another mesh"), "{said}");
    // With the right token the same node is welcome.
    let mut friend = mesh.another("friend", Part::Peer).unwrap();
    friend.start().unwrap();
    friend.ready().await.unwrap();
    assert_eq!(
        mesh.scheduler
            .metric("dragonfly_scheduler_nodes")
            .await
            .unwrap(),
        3.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_its_first_certificate_stops_in_good_order() {
    let mut mesh = Mesh::start(&Options {
        seeds: 0,
        peers: 0,
        ..Options::default()
    })
    .await
    .unwrap();
    mesh.scheduler.kill();
    let mut peer = mesh.another("late", Part::Peer).unwrap();
    peer.start().unwrap();
    until("the peer waits", || async { peer.said().contains("WARN") }).await;
    peer.terminate(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_an_encrypted_mesh_to_who_has_its_join_token() {
    let mesh = Mesh::start(&Options {
        peers: 1,
        ..Options::default()
    })
    .await
    .unwrap();
    let scheduler = mesh.scheduler.listen.to_string();
    let token = mesh.scheduler.state.join("mesh/join-token");
    let top = |more: Vec<String>| {
        let args = [
            "top".to_owned(),
            "--scheduler".to_owned(),
            scheduler.clone(),
        ];
        let args: Vec<_> = args.into_iter().chain(more).collect();
        let (program, dir) = (mesh.dragonfly.clone(), mesh.work.clone());
        async move {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            run(&program, &dir, &args).await
        }
    };
    let shown = top(vec![
        "--join-token-file".into(),
        token.display().to_string(),
    ])
    .await;
    let table = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert!(
        table.contains("seed-0") && table.contains("peer-0"),
        "{table}"
    );
    let without = top(vec![]).await;
    assert_eq!(without.status.code(), Some(3));
    let said = text(&without.stderr);
    assert!(said.contains("--join-token-file"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_finds_schedulers_that_are_added_to_its_bootstrap_file_while_it_runs() {
    let mesh = Mesh::start(&Options {
        seeds: 0,
        peers: 0,
        ..Options::default()
    })
    .await
    .unwrap();
    let file = mesh.work.join("bootstrap.json");
    let write = |schedulers: &[std::net::SocketAddr]| {
        let text = serde_json::json!({"version": 1, "mesh": "default", "schedulers": schedulers});
        // As a mounted ConfigMap changes: at once.
        let new = file.with_extension("new");
        std::fs::write(&new, text.to_string()).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    // Nobody is there yet: it waits, and looks into the file again.
    write(&[port().unwrap()]);
    let mut peer = mesh.another_by("late", Part::Peer, &file).unwrap();
    peer.start().unwrap();
    until("it asks for its certificate", || async {
        peer.said().contains("no certificate yet")
    })
    .await;
    write(&[mesh.scheduler.listen]);
    peer.ready().await.unwrap();

    let mut second = mesh.another_scheduler("scheduler-2").unwrap();
    second.start().unwrap();
    second.ready().await.unwrap();
    write(&[mesh.scheduler.listen, second.listen]);
    let sessions = async || peer.metric("dragonfly_node_scheduler_sessions").await;
    until("a session with the second scheduler", || async {
        sessions().await.ok() == Some(2.0)
    })
    .await;
    // A broken file changes nothing, and the log says which and why.
    std::fs::write(&file, r#"{"version":2}"#).unwrap();
    until("it complains", || async {
        let said = peer.said();
        said.contains("bootstrap.json") && said.contains("this release reads version 1")
    })
    .await;
    assert_eq!(sessions().await.unwrap(), 2.0);
    // One that is listed no longer is forgotten when it is gone.
    write(&[second.listen]);
    second.kill();
    write(&[mesh.scheduler.listen]);
    until("the second one is forgotten", || async {
        peer.said().contains("no scheduler of this mesh any more")
    })
    .await;
    assert_eq!(sessions().await.unwrap(), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_of_two_addresses_has_one_session_with_a_node_and_it_stays() {
    let mut mesh = Mesh::start(&Options {
        seeds: 0,
        peers: 0,
        ..Options::default()
    })
    .await
    .unwrap();
    let file = mesh.work.join("bootstrap.json");
    let listen = mesh.scheduler.listen;
    let schedulers = [listen.to_string(), format!("localhost:{}", listen.port())];
    let text = serde_json::json!({"version": 1, "mesh": "default", "schedulers": schedulers});
    std::fs::write(&file, text.to_string()).unwrap();
    let mut peer = mesh.another_by("twice", Part::Peer, &file).unwrap();
    peer.start().unwrap();
    peer.ready().await.unwrap();
    let log = mesh.scheduler.log.clone();
    let said = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let began = || said().matches("session began").count();
    // Each address was tried, and who lost its session to the other may have tried once more.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let settled = began();
    assert!((1..=6).contains(&settled), "{settled} sessions began");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(began(), settled, "they end each other");
    // Whichever it is, it is had again.
    mesh.scheduler.kill();
    mesh.scheduler.start().unwrap();
    mesh.scheduler.ready().await.unwrap();
    until("a session with the scheduler that is back", || async {
        let sessions = peer.metric("dragonfly_node_scheduler_sessions").await;
        began() > settled && sessions.ok() == Some(1.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_runs_the_samples_and_writes_their_status() {
    let dir = tempfile::tempdir().unwrap();
    let (state, said) = (dir.path().join("state"), dir.path().join("log"));
    let samples = dir.path().join("samples");
    std::fs::create_dir(&samples).unwrap();
    manifests::write(&samples, &Options::default()).unwrap();
    let mut command = Command::new(binary::dragonfly().unwrap());
    command
        .arg("up")
        .arg("-f")
        .arg(&samples)
        .args(["--peers", "2", "--state"]);
    command
        .arg(&state)
        .args(["--listen", &port().unwrap().to_string()]);
    command.stdout(Stdio::null()).stderr(log(&said).unwrap());
    let mut up = Process::spawn("up", &mut command).unwrap();
    let status = || -> Value {
        let bytes = std::fs::read(state.join("status/distribution.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    };
    until("seed and two peers run the policy", || async {
        status()["rollout"]["acknowledged"] == 3 && status()["conditions"][0]["status"] == "True"
    })
    .await;
    let origin = Origin::start(0).await.unwrap();
    let source = sample::random(&dir.path().join("source"), 8 * MIB, 7).unwrap();
    let url = origin.serve("file", &source.path).unwrap();
    let get = |peer: &str| {
        let socket = state.join(peer).join("node.sock");
        let output = dir.path().join(format!("{peer}.out"));
        Get::start(&binary::dragonfly().unwrap(), &socket, &url, &output, &[]).unwrap()
    };
    for get in [get("peer-0"), get("peer-1")] {
        let output = get.output.clone();
        let ended = get.wait(LIMIT).await.unwrap();
        assert_eq!(ended.code, Some(0), "{}", ended.complaint());
        assert_eq!(sample::digest(&output).unwrap(), source.digest);
    }
    assert_eq!(origin.sent(), source.len);
    until("the status tells of the traffic", || async {
        status()["traffic"]["originBytes"] == source.len
    })
    .await;
    let began = Instant::now();
    up.signal(Signal::TERM).unwrap();
    let ended = up.wait(Duration::from_secs(10)).await.unwrap();
    let said = text(&std::fs::read(&said).unwrap());
    assert!(
        ended.success(),
        "{ended} after {:?}\n{said}",
        began.elapsed()
    );
}
