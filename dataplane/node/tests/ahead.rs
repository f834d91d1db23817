//! Content that nodes get ahead: by a scheduler's word, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod kit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_node::node::Role;
use dragonfly_proto::id::credential_domain;
use dragonfly_proto::rpc::{self, tend::Action};
use dragonfly_scheduler::core::CoreSettings;
use dragonfly_scheduler::preheats::{Amount, Plan, Progress, State};
use dragonfly_scheduler::service::Service;
use dragonfly_storage::Options;
use kit::{Origin, SchedulerProcess, TestMesh, authority, bytes, log, read, read_all, source};

fn plan(job: &str, urls: &[String]) -> Plan {
    Plan {
        job: job.to_owned(),
        key: "uid".to_owned(),
        sources: urls.iter().map(|url| source(url)).collect(),
        role: rpc::Role::Peer,
        names: None,
        zones: vec![],
        amount: Amount::All,
        parallelism: 10,
        retries: 0,
        backoff: Duration::from_secs(1),
        ends_in: None,
        continuous: false,
        expect: 2,
    }
}

async fn over(service: &Service, job: &str) -> Progress {
    let began = Instant::now();
    loop {
        let progress = service.preheated(job).unwrap();
        if progress.state != State::Running {
            return progress;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{progress:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_it_once_from_the_origin_and_those_without_room_ask_for_nothing() {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let (large, small) = (
        mesh.node(1, Role::Peer).await,
        mesh.node(2, Role::Peer).await,
    );
    let quota = Options {
        quota_bytes: 8 << 20,
        ..small.node.store().options()
    };
    small.node.store().set_options(quota).unwrap();
    let len = 16 << 20;
    let origins = [
        Origin::start(bytes(len, 1)).await,
        Origin::start(bytes(4096, 2)).await,
    ];
    let urls = [origins[0].url("large"), origins[1].url("little")];

    scheduler.service.preheat(plan("uid/1", &urls)).unwrap();
    let p = over(&scheduler.service, "uid/1").await;
    assert_eq!((p.state, p.desired), (State::Succeeded, 2));
    assert_eq!((p.succeeded, p.no_room), (1, 1));
    assert_eq!(p.contents[0].length, Some(len as u64));
    assert_eq!((p.contents[0].held, p.contents[0].nodes), (len as u64, 1));
    assert_eq!(p.contents[1].held, 4096);
    assert_eq!(small.node.store().usage().bytes, 0, "nothing was asked for");
    // And one byte, to be told how long it is.
    let sent = len as u64 + 1;
    assert_eq!(origins[0].sent.load(Ordering::Relaxed), sent);

    // A job that is begun anew, as by a scheduler that took over, moves nothing.
    let requests = origins[0].requests.load(Ordering::Relaxed);
    scheduler.service.end_preheat("uid/1", false);
    scheduler.service.preheat(plan("uid/1", &urls)).unwrap();
    let p = over(&scheduler.service, "uid/1").await;
    assert_eq!((p.succeeded, p.no_room), (1, 1));
    assert_eq!(origins[0].sent.load(Ordering::Relaxed), sent);
    assert!(origins[0].requests.load(Ordering::Relaxed) <= requests + 1);

    // And clients find it.
    let got = read_all(&large, &urls[0]).await.unwrap();
    assert_eq!(got, *origins[0].body);

    // A person has all nodes keep it, and then delete it.
    let wish = |action: Action, prefix: &str| rpc::Tend {
        action: action.into(),
        url_prefix: prefix.to_owned(),
        ..rpc::Tend::default()
    };
    let done = scheduler
        .service
        .tend(wish(Action::Pin, &urls[0]))
        .await
        .unwrap();
    assert_eq!((done.asked, done.answered, done.contents), (3, 3, 2));
    assert!(large.node.store().list().iter().any(|held| held.pinned));

    // What somebody got by his credentials is his own, and goes without that of others.
    let shown = ("authorization", "Bearer his");
    let mut theirs = source(&urls[1]);
    theirs.headers.push(rpc::Header {
        name: shown.0.to_owned(),
        value: shown.1.to_owned(),
    });
    assert_eq!(read(&large, theirs).await.unwrap(), *origins[1].body);
    let theirs = rpc::Tend {
        domain: credential_domain([shown]).unwrap(),
        ..wish(Action::Purge, "")
    };
    let done = scheduler.service.tend(theirs.clone()).await.unwrap();
    assert_eq!((done.contents, done.in_use), (2, 0), "{done:?}");
    let done = scheduler.service.tend(theirs).await.unwrap();
    assert_eq!((done.contents, done.in_use), (0, 0), "{done:?}");

    let done = scheduler
        .service
        .tend(wish(Action::Purge, "http://"))
        .await
        .unwrap();
    assert_eq!((done.contents, done.in_use), (4, 0));
    // A node may have been asked meanwhile to take a lease over, of which it holds nothing.
    let held = large.node.store().list();
    assert!(held.iter().all(|held| held.held_blocks == 0), "{held:?}");
    let none = scheduler.service.tend(rpc::Tend::default()).await.unwrap();
    assert_eq!(none.failures.len(), 3, "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_said_with_its_url_and_the_origins_answer() {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let _peer = mesh.node(1, Role::Peer).await;
    // A port that nobody listens on.
    let url = "http://127.0.0.1:1/nobody?token=secret".to_owned();
    let mut wanted = plan("uid/1", &[url]);
    wanted.expect = 0;
    scheduler.service.preheat(wanted).unwrap();
    let p = over(&scheduler.service, "uid/1").await;
    assert_eq!((p.state, p.failed), (State::Failed, 1));
    let message = &p.failures[0].message;
    assert!(message.contains("http://127.0.0.1:1/nobody"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn getting_many_contents_of_one_origin_ahead_does_not_keep_clients_from_that_origin() {
    log();
    let authority = authority();
    let addr = "127.0.0.1:0".parse().unwrap();
    let scheduler = SchedulerProcess::start(addr, authority.clone(), CoreSettings::default()).await;
    let mesh = TestMesh::new(vec![scheduler.addr], authority);
    let _seed = mesh.node(100, Role::Seed).await;
    let _ahead = mesh.node(1, Role::Peer).await;
    let client = mesh.node(2, Role::Peer).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let origin = Origin::start(bytes(1 << 20, 1)).await;
    // Three times the requests that an origin is asked at a time.
    let urls: Vec<_> = (0..100).map(|n| origin.url(&format!("file{n}"))).collect();
    let wanted = Plan {
        names: Some(["node-1".to_owned()].into()),
        expect: 1,
        ..plan("uid/1", &urls)
    };
    scheduler.service.preheat(wanted).unwrap();
    while origin.requests.load(Ordering::Relaxed) < 10 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let since = Instant::now();
    let got = read_all(&client, &origin.url("meanwhile")).await.unwrap();
    assert_eq!(got, *origin.body);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "a client waited {took:?}");
    let p = over(&scheduler.service, "uid/1").await;
    assert_eq!((p.state, p.succeeded), (State::Succeeded, 1));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(14), "the job took {took:?}");
}
