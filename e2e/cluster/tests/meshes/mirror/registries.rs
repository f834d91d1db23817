//! `registries.conf.d` as the library reads it that CRI-O, podman and buildah have in common: by buildah,
//! which a Debian has in one package and which needs no daemon.

use super::nodes::{counter, went};
use super::place::{Bed, OPEN};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs buildah (scripts/setup.sh containers)"]
async fn what_reads_registries_conf_pulls_through_the_mirror() {
    const LEN: usize = 4 << 20;
    let bed = Bed::start().await;
    // The mirror listens; who tells buildah of it runs here, for nodes have no `/etc` of their own.
    bed.mesh_with(Some(bed.mirror())).await;
    let layer = bed.push("plain:v1", LEN, 1).await;
    let node = bed.node(0);
    let dragonfly = dragonfly_e2e::binary::dragonfly().unwrap();
    let script = format!(
        "set -e; dir=/run/containers-test; mkdir -p $dir
         {} mirror --mirror 127.0.0.1:4002 --containers $dir \
             --registry {OPEN}=http://{}:5000 2>$dir/log &
         pid=$!
         conf=$dir/registries.conf.d/999-dragonfly.conf
         for i in $(seq 200); do [ -e $conf ] && break; sleep 0.1; done
         cat $conf
         echo '{{\"default\":[{{\"type\":\"insecureAcceptAnything\"}}]}}' >$dir/policy.json
         printf '' >$dir/registries.conf
         status=0
         unshare --mount sh -c \"mount --bind $dir /etc/containers &&
             buildah --root $dir/root --runroot $dir/run --storage-driver vfs \
                 pull {OPEN}/plain:v1\" >$dir/said 2>&1 || status=$?
         kill $pid; wait $pid || true
         cat $dir/said >&2; ls $dir; exit $status",
        dragonfly.display(),
        bed.address(),
    );
    let said = node.run(&["sh", "-c", &script]).await.unwrap();
    assert!(said.contains(&format!("127.0.0.1:4002/{OPEN}")), "{said}");
    let (_, left) = said.rsplit_once("policy.json").unwrap();
    assert!(
        !left.contains("registries.conf.d"),
        "made with the entry: {said}"
    );
    let through = counter(node, "dragonfly_mirror_mesh_bytes_total").await;
    assert!(through.unwrap() >= LEN as u64, "{said}");
    let sent = went(&bed.cluster, "registry", &format!("plain/blobs/{layer}"));
    assert_eq!(sent.gets, 1, "by the seed: {sent:?}");
    bed.cluster.stop().await.unwrap();
}
