//! What the harness promises to tests.

use std::time::Duration;

use dragonfly_cluster::operator::load;
use dragonfly_cluster::wait::{ready_daemon_set, ready_pod, wait_for};
use dragonfly_cluster::{Cluster, ClusterOptions, Containerd, Failed, IpFamily, apply, http, pod};
use dragonfly_cluster::{pods_possible, wait::wait_until};
use http_body_util::Full;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::Resource;
use kube::api::Api;

use crate::shared;

const READY: Duration = Duration::from_secs(60);

/// An origin on every node, behind one Service.
const ORIGINS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: origins}
spec:
  selector: {app: origins}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: origins}
spec:
  selector: {matchLabels: {app: origins}}
  template:
    metadata: {labels: {app: origins}}
    spec:
      containers:
        - name: origin
          image: registry.test/test-origin:dev
          args: ['--listen=[::]:8080', '--file=x=1000', '--dir=/disk']
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
          volumeMounts: [{name: disk, mountPath: /disk}]
      securityContext: {runAsUser: 0}
      volumes: [{name: disk, hostPath: {path: /var/lib/origins, type: DirectoryOrCreate}}]
";

/// Pods run on every node, pull from the registry, have a directory of their node, and are reached
/// from here by their own address and by their Service's.
async fn pods_work(cluster: &Cluster) {
    load(cluster, "test-origin").await.unwrap();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        apply::yaml(&client, &namespace, ORIGINS).await?;
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
        wait_for(&sets, "origins", READY, ready_daemon_set).await?;
        let pods = pod::with_labels(&client, &namespace, "app=origins").await?;
        assert_eq!(pods.len(), cluster.nodes().count());
        let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
        let service = services
            .get("origins")
            .await
            .map_err(|e| Failed::at("origins", e))?;
        let service = service.spec.and_then(|s| s.cluster_ip).unwrap_or_default();
        let pod_ip = |pod: &Pod| pod.status.as_ref()?.pod_ip.clone();
        let bracketed = |ip: &str| {
            if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            }
        };
        let mut addresses: Vec<_> = pods
            .iter()
            .map(|pod| format!("{}:8080", bracketed(&pod_ip(pod).unwrap_or_default())))
            .collect();
        addresses.push(format!("{}:80", bracketed(&service)));
        for address in addresses {
            // kube-proxy may be a moment behind the pods.
            let body = wait_until(&address, READY, || async {
                let request = hyper::Request::get("/x").body(Full::default());
                let request = request.map_err(|e| Failed::at(&address, e))?;
                let answer = http::ask(&address, request)
                    .await
                    .map_err(|e| e.to_string());
                Ok(answer.map(|answer| answer.body))
            });
            assert_eq!(body.await?.len(), 1000, "{address}");
        }
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
    for node in cluster.nodes() {
        let inside = node
            .run(&["stat", "-c", "%s", "/var/lib/origins/x"])
            .await
            .unwrap();
        assert_eq!(inside.trim(), "1000");
        let outside = node.path(std::path::Path::new("/var/lib/origins/x"));
        assert_eq!(std::fs::metadata(outside).unwrap().len(), 1000);
    }
}

#[tokio::test]
async fn pods_run_on_nodes_with_either_containerd_and_are_reached_from_tests() {
    let cluster = shared().await;
    let versions: Vec<_> = cluster.nodes().map(|n| n.containerd()).collect();
    assert_eq!(versions, [Containerd::Debian, Containerd::Two]);
    let client = cluster.client().await.unwrap();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    for (node, wanted) in cluster
        .nodes()
        .zip(["containerd://1.6.", "containerd://2."])
    {
        let known = nodes.get(node.name()).await.unwrap();
        let version = known
            .status
            .unwrap()
            .node_info
            .unwrap()
            .container_runtime_version;
        assert!(version.starts_with(wanted), "{version}");
    }
    pods_work(&cluster).await;
}

#[tokio::test]
async fn a_cluster_leaves_the_machines_kernel_as_it_is() {
    let settings = [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
    ];
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap();
    let before = settings.map(read);
    let cluster = shared().await;
    for node in cluster.nodes() {
        // A kubelet that runs has looked at them, and what it sees is what it wants.
        let seen = node.run(&[
            "cat",
            "/proc/sys/kernel/panic",
            "/proc/sys/vm/overcommit_memory",
        ]);
        assert_eq!(seen.await.unwrap(), "10\n1\n");
    }
    // True for certain only where they differ from what kubelet wants; on most machines they do.
    assert_eq!(settings.map(read), before);
}

#[tokio::test]
async fn a_dual_stack_cluster_gives_pods_both_addresses() {
    let options = ClusterOptions::nodes(2).family(IpFamily::Dual);
    let cluster = Cluster::start(&options).await.unwrap();
    pods_work(&cluster).await;
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        apply::yaml(&client, &namespace, ORIGINS).await?;
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
        wait_for(&sets, "origins", READY, ready_daemon_set).await?;
        for pod in pod::with_labels(&client, &namespace, "app=origins").await? {
            let ips = pod.status.and_then(|s| s.pod_ips).unwrap_or_default();
            let v6 = ips.iter().filter(|ip| ip.ip.contains(':')).count();
            assert_eq!((ips.len(), v6), (2, 1), "{ips:?}");
        }
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn pods_of_an_ipv6_only_cluster_are_reached_too() {
    let options = ClusterOptions::nodes(2).family(IpFamily::V6);
    let cluster = Cluster::start(&options).await.unwrap();
    pods_work(&cluster).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn commands_in_a_pod_say_how_they_ended() {
    let cluster = shared().await;
    load(&cluster, "test-origin").await.unwrap();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        let text = r"{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {containers: [
            {name: origin, image: 'registry.test/test-origin:dev', args: [--dir=/tmp]}]}}";
        apply::yaml(&client, &namespace, text).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        wait_for(&pods, "one", READY, ready_pod).await?;
        let well = pod::exec(&client, &namespace, "one", &["test-origin", "--help"]).await?;
        assert!(well.success()?.contains("--listen"));
        let badly = pod::exec(&client, &namespace, "one", &["test-origin", "--nonsense"]).await?;
        assert_eq!(badly.code, 2);
        assert!(badly.errors.contains("--nonsense"), "{badly:?}");
        assert!(
            pod::log(&client, &namespace, "one")
                .await?
                .contains("listening on")
        );
        Ok::<_, Failed>(())
    });
    tested.await.unwrap();
}

#[tokio::test]
async fn a_failed_test_shows_why_its_pod_does_not_run() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        pods_possible(&client, &namespace).await?;
        let text = r"{apiVersion: v1, kind: Pod, metadata: {name: lost}, spec: {containers: [
            {name: x, image: 'registry.test/no-such-image:1'}]}}";
        apply::yaml(&client, &namespace, text).await?;
        wait_until("the pull to fail", READY, || async {
            let shown = dragonfly_cluster::diagnostics::of_namespace(&client, &namespace).await;
            let wanted = [
                "pod lost on node-",
                "no-such-image",
                "event Warning Pod/lost",
            ];
            let there = wanted.iter().all(|text| shown.contains(text));
            Ok(if there { Ok(()) } else { Err(shown) })
        })
        .await?;
        Err::<(), _>(Failed(namespace))
    });
    // The error is the test's own, and its namespace is on its way out.
    let namespace = tested.await.unwrap_err().0;
    let all: Api<Namespace> = Api::all(client);
    let left = all.get_opt(&namespace).await.unwrap();
    assert!(left.is_none_or(|ns| ns.meta().deletion_timestamp.is_some()));
}

#[tokio::test]
async fn a_node_comes_back_after_its_kubelet_and_containerd_were_killed() {
    let cluster = Cluster::start(&ClusterOptions::nodes(1)).await.unwrap();
    for daemon in ["kubelet-0", "containerd-0"] {
        cluster.kill(daemon).await.unwrap();
        assert!(
            cluster.kill(daemon).await.is_err(),
            "{daemon} was killed already"
        );
        cluster.restart(daemon).await.unwrap();
    }
    assert!(cluster.restart("nonsense").await.is_err());
    pods_work(&cluster).await;
    cluster.stop().await.unwrap();
}
