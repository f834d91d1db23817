//! What meshes become, without a cluster.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly"
)]

use std::collections::BTreeSet;

use dragonfly_crds::{Distribution, Invalid};
use dragonfly_operator_core::build::{Keys, objects, services};
use dragonfly_operator_core::validate::validate;
use dragonfly_operator_core::{Addresses, Mesh, Settings, Wanted};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

fn distribution(spec: &str) -> Distribution {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    let object = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
        "metadata": {"namespace": "n", "name": "m".repeat(45), "uid": "u"},
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn mesh(spec: &str) -> Mesh {
    validate(&distribution(spec), None, None).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

fn mistakes(spec: &str) -> Vec<Invalid> {
    validate(&distribution(spec), None, None).unwrap_err()
}

fn built(mesh: &Mesh) -> Vec<Wanted> {
    let addresses = Addresses {
        schedulers: (0..64).map(|n| format!("10.0.0.{n}:8002")).collect(),
        ipv6: false,
        issuer: Some("10.1.0.1:8443".to_owned()),
    };
    let keys = Keys {
        fingerprint: "f".to_owned(),
        join_token: Some("token".to_owned()),
        ca: Some("CA".to_owned()),
    };
    let settings = Settings {
        image: "dragonfly:1".to_owned(),
        ..Settings::default()
    };
    let all = objects(mesh, &addresses, &keys, &settings, true);
    all.wanted().unwrap()
}

/// The pods of every workload, with the workload's name.
fn pods(all: &[Wanted]) -> Vec<(&str, &Value)> {
    let found = all.iter().filter_map(|object| {
        let pod = object.body.pointer("/spec/template/spec")?;
        Some((object.name.as_str(), pod))
    });
    found.collect()
}

fn pod<'a>(all: &'a [Wanted], part: &str) -> &'a Value {
    let named = |name: &str| name.trim_start_matches("m").starts_with(part);
    let found = pods(all).into_iter().find(|(name, _)| named(name));
    found.unwrap_or_else(|| panic!("no {part}")).1
}

const MESHES: [&str; 9] = [
    "{}",
    "{profile: Heavy, networkPolicies: {nodeCIDRs: [10.0.0.0/8]}}",
    "{seeds: {replicas: 64, storage: {volumeClaim: {size: 1Gi}}}}",
    "{seeds: {storage: {hostPath: {path: /data}}}}",
    "{security: {transport: Plaintext}}",
    "{storage: {media: Memory, quota: 1Gi}}",
    "{peers: {storage: {emptyDir: {}}}}",
    "{mirror: {nodeSelector: {}}}",
    "{externalSchedulers: {addresses: ['a:1'], mesh: x, joinTokenSecretRef: {name: t}}, \
      seeds: {location: External}}",
];

#[test]
fn equal_meshes_become_equal_objects_of_one_name_each_that_go_with_the_mesh() {
    for spec in MESHES {
        let all = built(&mesh(spec));
        assert_eq!(all, built(&mesh(spec)), "{spec}");
        let mut names = BTreeSet::new();
        for object in &all {
            assert!(
                names.insert((object.kind, object.name.clone())),
                "{object:?}"
            );
            assert!(object.name.len() <= 63, "{}", object.name);
            assert_eq!(object.namespace, "n");
            let meta = &object.body["metadata"];
            assert_eq!(meta["ownerReferences"][0]["uid"], "u", "{}", object.name);
            assert_eq!(
                meta["labels"]["app.kubernetes.io/managed-by"],
                "dragonfly-operator"
            );
            assert_eq!(object.body["kind"], object.kind.kind);
            assert_eq!(object.body["apiVersion"], object.kind.api_version());
        }
    }
}

#[test]
fn every_pod_has_no_capability_no_shell_to_write_with_and_no_token_but_a_schedulers() {
    for spec in MESHES {
        for (name, pod) in pods(&built(&mesh(spec))) {
            let container = &pod["containers"][0]["securityContext"];
            assert_eq!(container["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(container["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(
                container["capabilities"],
                json!({"drop": ["ALL"]}),
                "{name}"
            );
            let own = &pod["securityContext"];
            assert_eq!(own["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            let scheduler = name.contains("-scheduler-");
            assert_eq!(pod["automountServiceAccountToken"], scheduler, "{name}");
            let of_node = pod["volumes"]
                .as_array()
                .unwrap()
                .iter()
                .any(|volume| volume["hostPath"].is_object());
            let root = own["runAsUser"] == 0;
            assert_eq!(
                root, of_node,
                "{name}: root where it has a directory of the node"
            );
            assert_eq!(own["runAsNonRoot"] == true, !root, "{name}");
        }
    }
}

#[test]
fn keys_are_where_they_are_needed_and_nowhere_else() {
    let secrets = |spec: &str, part: &str| -> Vec<String> {
        let all = built(&mesh(spec));
        let volumes = pod(&all, part)["volumes"].as_array().unwrap().clone();
        let named = volumes
            .iter()
            .filter_map(|v| v["secret"]["secretName"].as_str());
        named
            .map(|name| name.trim_start_matches("m").to_owned())
            .collect()
    };
    assert_eq!(secrets("{}", "-scheduler"), ["-authority"]);
    assert!(secrets("{}", "-peer").is_empty());
    assert!(secrets("{}", "-seed").is_empty());
    assert_eq!(secrets(MESHES[8], "-peer"), ["t"]);
    let all = built(&mesh("{}"));
    let keys: Vec<_> = pod(&all, "-scheduler")["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|v| v["secret"]["items"].as_array())
        .collect();
    assert_eq!(
        json!(keys),
        json!([[{"key": "authority.key", "path": "authority.key"}]])
    );
    let plain = "{security: {transport: Plaintext}}";
    assert_eq!(secrets(plain, "-scheduler"), ["-authority"]);
    assert!(secrets(plain, "-peer").is_empty());
    let token = |all: &[Wanted]| all.iter().any(|o| o.name.ends_with("-join"));
    assert!(token(&built(&mesh("{}"))) && !token(&built(&mesh(plain))));
}

#[test]
fn every_part_proves_itself_by_a_token_for_this_mesh_alone() {
    for part in ["-scheduler", "-seed", "-peer"] {
        let tokens = |spec: &str| -> Vec<Value> {
            let all = built(&mesh(spec));
            let volumes = pod(&all, part)["volumes"].as_array().unwrap().clone();
            let projected = volumes
                .iter()
                .filter_map(|v| v["projected"]["sources"].as_array());
            projected
                .flatten()
                .map(|s| s["serviceAccountToken"]["audience"].clone())
                .collect()
        };
        assert_eq!(tokens("{}"), [json!("dragonfly.d7y.io/u")], "{part}");
        assert!(
            tokens("{security: {transport: Plaintext}}").is_empty(),
            "{part}"
        );
    }
    let bootstrap = |spec: &str| -> Value {
        let all = built(&mesh(spec));
        let map = all.iter().find(|o| o.kind.kind == "ConfigMap").unwrap();
        let text = map.body["data"]["bootstrap.json"].as_str().unwrap();
        serde_json::from_str(text).unwrap()
    };
    let said = bootstrap("{}");
    assert_eq!(
        (&said["issuer"], &said["ca"]),
        (&json!("10.1.0.1:8443"), &json!("CA"))
    );
    assert!(
        bootstrap("{security: {transport: Plaintext}}")
            .get("ca")
            .is_none()
    );
    assert!(bootstrap(MESHES[8]).get("issuer").is_none());
}

#[test]
fn content_in_memory_has_room_and_a_mesh_on_other_media_has_other_pods() {
    let request = |spec: &str, part: &str| {
        let all = built(&mesh(spec));
        pod(&all, part)["containers"][0]["resources"]["requests"]["memory"].clone()
    };
    assert_eq!(request("{}", "-peer"), "256Mi");
    let memory = "{storage: {media: Memory, quota: 1Gi}}";
    assert_eq!(request(memory, "-peer"), "1280Mi");
    assert_eq!(request(memory, "-scheduler"), "128Mi");
    let said = "{storage: {media: Memory}, peers: {pods: {resources: {limits: {memory: 3Gi}}}}}";
    assert_eq!(request(said, "-peer"), "3Gi");
    let annotations = |spec: &str| {
        let all = built(&mesh(spec));
        let peers = all
            .iter()
            .find(|o| o.name.ends_with("-peer") && o.kind.kind == "DaemonSet");
        peers.unwrap().body["spec"]["template"]["metadata"]["annotations"].clone()
    };
    assert_ne!(annotations("{}"), annotations(memory));
    assert_eq!(
        annotations("{}"),
        annotations("{limits: {upload: 1Gi}, storage: {quota: 1Gi}}"),
        "what nodes take while they run replaces no pod"
    );
}

#[test]
fn container_runtimes_are_told_of_the_mirror_on_chosen_nodes_only() {
    for spec in ["{}", "{mirror: {}}"] {
        let all = built(&mesh(spec));
        assert!(!all.iter().any(|o| o.name.ends_with("-mirror")), "{spec}");
    }
    // What is chosen are nodes without a peer.
    let spec = "{mirror: {nodeSelector: {pool: a}}, peers: {pods: {nodeSelector: {pool: b}}}}";
    let pods = |o: &Wanted| o.kind.kind == "DaemonSet" && o.name.ends_with("-mirror");
    assert!(!built(&mesh(spec)).iter().any(pods));
    let all = built(&mesh(
        "{mirror: {nodeSelector: {pool: a}, registries: [{host: docker.io}, {host: 'r:5', url: 'http://10.0.0.1:5'}], \
          others: Never, containerdDirectory: /etc/k3s}, \
          peers: {pods: {nodeSelector: {disk: ssd}, resources: {requests: {memory: 9Gi}}, \
          tolerations: [{operator: Exists}]}}}",
    ));
    let pod = pod(&all, "-mirror");
    assert_eq!(pod["nodeSelector"], json!({"pool": "a", "disk": "ssd"}));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["hostNetwork"], true);
    let container = &pod["containers"][0];
    assert_eq!(container["resources"]["requests"]["memory"], "32Mi");
    let args: Vec<_> = container["args"].as_array().unwrap().iter().collect();
    assert_eq!(
        args,
        [
            "mirror",
            "--mirror=127.0.0.1:4002",
            "--node=$(NODE_NAME)",
            "--percent=100",
            "--containerd=/host/containerd",
            "--on-node=/etc/k3s",
            "--registry=docker.io",
            "--registry=r:5=http://10.0.0.1:5",
        ]
    );
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/etc/k3s");
    // Without labels all nodes are picked, and what a percentage asks for is a look at least.
    let all = built(&mesh(
        "{mirror: {percent: 0, runtimes: [Docker, Containers], registries: [{host: docker.io}]}}",
    ));
    let pod = self::pod(&all, "-mirror");
    assert_eq!(pod.get("nodeSelector"), None);
    let args = pod["containers"][0]["args"].to_string();
    for said in [
        "--percent=0",
        "--containers=/host/containers",
        "--docker=/host/docker",
    ] {
        assert!(args.contains(said), "{args}");
    }
    assert!(!args.contains("containerd"), "{args}");
    let paths: Vec<_> = (0..2)
        .map(|at| pod["volumes"][at]["hostPath"]["path"].clone())
        .collect();
    assert_eq!(paths, ["/etc/containers", "/etc/docker"]);
    let account = |o: &&Wanted| o.kind.kind == "ServiceAccount" && o.name.ends_with("-mirror");
    assert_eq!(all.iter().filter(account).count(), 1);
}

#[test]
fn pull_secrets_are_peers_alone() {
    let all = built(&mesh(
        "{mirror: {registries: [{host: a.test}], pullSecrets: [{name: one}, {name: two}]}}",
    ));
    let peer = pod(&all, "-peer");
    let volumes = peer["volumes"].as_array().unwrap();
    let secrets: Vec<_> = volumes
        .iter()
        .filter(|v| v["name"].as_str().unwrap().starts_with("pull-secret"))
        .map(|v| {
            (
                v["secret"]["secretName"].clone(),
                v["secret"]["optional"].clone(),
            )
        })
        .collect();
    assert_eq!(
        secrets,
        [(json!("one"), json!(true)), (json!("two"), json!(true))]
    );
    let args = peer["containers"][0]["args"].to_string();
    assert!(args.contains("--pull-secrets=/etc/dragonfly/pull-secrets"));
    for other in all.iter().filter(|o| !o.name.ends_with("-peer")) {
        let text = other.body.to_string();
        assert!(!text.contains("pull-secret"), "{} has them", other.name);
    }
}

#[test]
fn addresses_come_from_services_of_either_family() {
    let service = |ip: &str, families: &[&str]| -> Service {
        let spec = json!({"clusterIP": ip, "ipFamilies": families});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    };
    let rows = [
        (service("10.0.0.1", &["IPv4"]), "10.0.0.1:8002", false),
        (
            service("10.0.0.1", &["IPv4", "IPv6"]),
            "10.0.0.1:8002",
            true,
        ),
        (service("fd00::1", &["IPv6"]), "[fd00::1]:8002", true),
    ];
    for (service, address, ipv6) in rows {
        let found = Addresses::of_services(&[service]).unwrap();
        assert_eq!((found.schedulers[0].as_str(), found.ipv6), (address, ipv6));
    }
    assert_eq!(Addresses::of_services(&[service("", &[])]), None);
    assert_eq!(services(&mesh("{}")).len(), 1);
}

#[test]
fn what_an_older_schema_let_through_is_found() {
    let rows = [
        ("{peers: {port: 80}}", "spec.peers.port"),
        ("{peers: {port: 70000}}", "spec.peers.port"),
        ("{peers: {adminPort: 4000}}", "spec.peers.adminPort"),
        (
            "{peers: {maxUnavailablePercent: 0}}",
            "spec.peers.maxUnavailablePercent",
        ),
        (
            "{peers: {socketDirectory: /}}",
            "spec.peers.socketDirectory",
        ),
        (
            "{peers: {socketDirectory: 'run'}}",
            "spec.peers.socketDirectory",
        ),
        (
            "{peers: {storage: {hostPath: {path: /a/../b}}}}",
            "spec.peers.storage.hostPath.path",
        ),
        (
            "{peers: {storage: {hostPath: {path: /a}, emptyDir: {}}}}",
            "spec.peers.storage",
        ),
        (
            "{seeds: {storage: {hostPath: {path: /a}, volumeClaim: {size: 1Gi}}}}",
            "spec.seeds.storage",
        ),
        (
            "{seeds: {storage: {hostPath: {path: /var/lib/dragonfly/peer}}}}",
            "spec.seeds.storage.hostPath.path",
        ),
        (
            "{networkPolicies: {nodeCIDRs: []}}",
            "spec.networkPolicies.nodeCIDRs",
        ),
        (
            "{networkPolicies: {nodeCIDRs: [10.0.0.0/33]}}",
            "spec.networkPolicies.nodeCIDRs[0]",
        ),
        (
            "{networkPolicies: {nodeCIDRs: ['fd00::/129']}}",
            "spec.networkPolicies.nodeCIDRs[0]",
        ),
        (
            "{security: {transport: Plaintext}, externalSchedulers: {addresses: ['a'], mesh: x}}",
            "spec.externalSchedulers.addresses[0]",
        ),
        (
            "{externalSchedulers: {addresses: ['a:1'], mesh: x}}",
            "spec.externalSchedulers",
        ),
        (
            "{security: {transport: Plaintext}, externalSchedulers: {addresses: [], mesh: x}}",
            "spec.externalSchedulers.addresses",
        ),
        (
            "{security: {transport: Plaintext, issuerRef: {name: c}}}",
            "spec.security.issuerRef",
        ),
        (
            "{security: {issuerRef: {name: c}}, \
              externalSchedulers: {addresses: ['a:1'], mesh: x, joinTokenSecretRef: {name: t}}}",
            "spec.security.issuerRef",
        ),
        (
            "{security: {issuerRef: {name: c, kind: Secret}}}",
            "spec.security.issuerRef.kind",
        ),
    ];
    for (spec, field) in rows {
        let found = mistakes(spec);
        let fields: Vec<_> = found.iter().map(|mistake| mistake.field.as_str()).collect();
        assert_eq!(fields, [field], "{spec}: {found:?}");
    }
    for name in ["a.b", "9a", ""] {
        let mut named = distribution("{}");
        named.metadata.name = Some(name.to_owned());
        let wrong = validate(&named, None, None).unwrap_err();
        assert_eq!(wrong[0].field, "metadata.name", "{name}");
    }
}

#[test]
fn pods_are_replaced_when_schedulers_of_elsewhere_are_another_meshs_and_not_when_they_move() {
    let of = |address: &str, name: &str| {
        let text = format!(
            "{{security: {{transport: Plaintext}}, externalSchedulers: {{addresses: ['{address}'], \
             mesh: {name}}}}}"
        );
        let all = built(&mesh(&text));
        let templates = all.iter().filter_map(|object| {
            let template = object.body.pointer("/spec/template")?;
            let name = object.name.trim_start_matches('m').to_owned();
            Some((name, template.clone()))
        });
        templates.collect::<Vec<_>>()
    };
    let before = of("a:1", "x");
    let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["-seed", "-peer"]);
    assert_eq!(of("b:1", "x"), before);
    for ((name, was), (_, is)) in before.iter().zip(&of("a:1", "other")) {
        assert_ne!(was, is, "{name}");
    }
}

#[test]
fn the_only_seed_stays_until_its_successor_is_ready() {
    for (spec, unavailable, surge) in [
        ("{}", 0, 1),
        ("{seeds: {replicas: 2}}", 1, 1),
        ("{seeds: {storage: {hostPath: {path: /data}}}}", 1, 0),
    ] {
        let all = built(&mesh(spec));
        let is_it = |o: &&Wanted| o.kind.kind == "Deployment" && o.name.ends_with("m-seed");
        let seed = all.iter().find(is_it).unwrap();
        let rolling = &seed.body["spec"]["strategy"]["rollingUpdate"];
        assert_eq!(
            rolling,
            &json!({"maxUnavailable": unavailable, "maxSurge": surge}),
            "{spec}"
        );
    }
}
