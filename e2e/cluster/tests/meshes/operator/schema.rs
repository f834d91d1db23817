//! The kinds as an API server enforces them: every rule has an object on its right side and one on its
//! wrong side.

use std::path::PathBuf;

use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use dragonfly_cluster::operator::repository;

use super::bed::shared;

fn files(directory: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(repository("config/samples").join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The objects of a text as they are written, for what is wrong with them is what matters.
fn parse(text: &str) -> Vec<Value> {
    let all: Vec<Option<Value>> = serde_saphyr::from_multiple(text).unwrap();
    all.into_iter().flatten().collect()
}

/// Creates an object as `kubectl create --validate=strict --dry-run=server` does.
async fn create(client: &Client, mut object: Value) -> Result<(), String> {
    let text = |field: &str| object[field].as_str().unwrap().to_owned();
    let (group, version) = text("apiVersion")
        .split_once('/')
        .map(|(group, version)| (group.to_owned(), version.to_owned()))
        .unwrap();
    let kind = GroupVersionKind::gvk(&group, &version, &text("kind"));
    let resource = ApiResource::from_gvk(&kind);
    // The namespaces of samples are not those of this cluster.
    object["metadata"]["namespace"] = Value::from("default");
    let all: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    let url = format!("{}?dryRun=All&fieldValidation=Strict", all.resource_url());
    let body = serde_json::to_vec(&object).unwrap();
    let request = hyper::Request::post(url).header("content-type", "application/json");
    match client.request_text(request.body(body).unwrap()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(format!("{} {}", status.code, status.message)),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_accepted_sample_is_accepted() {
    let client = shared().await.cluster.client().await.unwrap();
    for directory in [
        "accepted", "stalled", "profiles", "preheats", "external", "",
    ] {
        for path in files(directory) {
            let text = std::fs::read_to_string(&path).unwrap();
            for object in parse(&text) {
                let created = create(&client, object).await;
                assert_eq!(created, Ok(()), "{}", path.display());
            }
        }
    }
}

#[tokio::test]
async fn every_rejected_sample_is_rejected_for_the_reason_that_it_names() {
    let client = shared().await.cluster.client().await.unwrap();
    let mut seen = 0;
    for path in files("rejected") {
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().unwrap();
        let expected = expected.strip_prefix("# expect: ").unwrap();
        let (field, rest) = expected.split_once(": ").unwrap();
        let reason = rest.split_once(": ").map_or(rest, |(reason, _)| reason);
        let mut refused = vec![];
        for object in parse(&text) {
            refused.extend(create(&client, object).await.err());
        }
        let said = refused.join("; ");
        let name = path.display();
        let wanted: Vec<String> = match reason {
            // Another server's words for what light mode says too.
            "unknown kind" | "Unsupported value" if field == "apiVersion" || field == "kind" => {
                vec!["404 ".to_owned()]
            }
            "unknown field" => vec![format!("unknown field \"{field}\"")],
            "Required value" if field.starts_with("metadata") => vec!["name".to_owned()],
            // Of the wrong type before anything is validated, or by the schema.
            _ if field == "<nil>" || field.starts_with("metadata") => {
                let rest = rest.split_once(": ").map_or("", |(_, rest)| rest);
                vec![rest.chars().take(40).collect()]
            }
            _ => vec![field.to_owned(), reason.to_owned()],
        };
        assert!(!said.is_empty(), "{name} is accepted");
        for wanted in wanted {
            assert!(
                said.contains(&wanted),
                "{name}: {wanted:?} is not in {said:?}"
            );
        }
        seen += 1;
    }
    eprintln!("{seen} objects were refused");
}
