//! A node's cache when it is full: what nobody uses gives way to what somebody wants.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{MIB, Setting};
use dragonfly_e2e::mesh::Options;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_gives_way_to_the_next_content_at_seed_and_peer() {
    let options = Options {
        peers: 1,
        spec: "  backToSource: Never\n  storage: {quota: 256Mi, reserveFreePercent: 0}\n"
            .to_owned(),
        ..Options::default()
    };
    let setting = Setting::new(&options, 64 * MIB, 0).await;
    for n in 0..9 {
        let url = format!("{}?which={n}", setting.url);
        let get = setting.mesh.get(0, &url, &[]).unwrap();
        setting.has(get).await;
    }
}
