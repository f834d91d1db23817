//! What is published: generated files, conventions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly"
)]

use std::path::Path;

use dragonfly_crds::{crdgen, reference, schema};
use serde_json::Value;

#[test]
fn committed_crds_are_what_the_types_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let places = [
        ("config/crd", crdgen::render().unwrap()),
        (
            "charts/dragonfly-crds/templates",
            crdgen::render_chart().unwrap(),
        ),
    ];
    for (directory, rendered) in places {
        let directory = root.join(directory);
        for (name, text) in &rendered {
            let committed = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(
                committed == *text,
                "{name} differs: cargo run -p dragonfly-crds --features crdgen --bin crdgen"
            );
            assert!(text.len() < crdgen::MAX_CRD, "{name}");
        }
        let files = std::fs::read_dir(directory).unwrap().flatten();
        let committed = files.filter(|f| f.path().extension().is_some_and(|e| e == "yaml"));
        assert_eq!(committed.count(), rendered.len(), "a stale file");
    }
    let committed = std::fs::read_to_string(root.join("docs/fields.md")).unwrap_or_default();
    assert!(
        committed == reference::render().unwrap(),
        "docs/fields.md differs: make crds"
    );
}

#[test]
fn every_schema_is_enforced_whole() {
    let kinds = schema::kinds().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kinds.len(), crdgen::crds().unwrap().len());
}

/// Calls `check` with the path and schema of every field of spec and status.
fn walk(path: &str, schema: &Value, check: &mut dyn FnMut(&str, &Value)) {
    check(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, check);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], check);
    }
}

#[test]
fn every_field_is_documented_and_bounded() {
    for (plural, crd) in crdgen::crds().unwrap() {
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            walk(
                &format!("{plural}.{part}"),
                &root["properties"][part],
                &mut |path, schema| {
                    if !path.ends_with("[]") {
                        let text = schema["description"].as_str().unwrap_or_default();
                        assert!(text.len() > 2, "{path} has no description");
                    }
                    assert!(schema["nullable"].is_null(), "{path} is nullable");
                    // Conditions are a type of Kubernetes, which its own writers keep short.
                    if path.contains("conditions[]") {
                        return;
                    }
                    match schema["type"].as_str() {
                        // A time is as long as times are: an API server takes nothing else.
                        Some("string") => assert!(
                            schema["maxLength"].is_u64()
                                || schema["enum"].is_array()
                                || schema["format"] == "date-time",
                            "{path} is text without a bound"
                        ),
                        Some("array") => {
                            assert!(
                                schema["maxItems"].is_u64(),
                                "{path} is a list without a bound"
                            );
                            assert!(schema["x-kubernetes-list-type"].is_string(), "{path}");
                        }
                        Some("integer") => {
                            let format = schema["format"].as_str();
                            assert!(
                                matches!(format, Some("int32" | "int64")),
                                "{path} is {format:?}"
                            );
                            assert!(schema["minimum"].is_number(), "{path} has no least value");
                        }
                        Some("object") => {}
                        other => panic!("{path} is of type {other:?}"),
                    }
                },
            );
        }
    }
}

#[test]
fn every_kind_follows_the_conventions() {
    for (plural, crd) in crdgen::crds().unwrap() {
        let version = &crd["spec"]["versions"][0];
        assert_eq!(crd["spec"]["group"], "d7y.io", "{plural}");
        assert_eq!(crd["spec"]["scope"], "Namespaced", "{plural}");
        assert_eq!(
            crd["spec"]["names"]["categories"][0], "dragonfly",
            "{plural}"
        );
        assert!(version["subresources"]["status"].is_object(), "{plural}");
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        let names: Vec<_> = columns
            .iter()
            .filter_map(|column| column["name"].as_str())
            .collect();
        assert_eq!(
            (names[0], names[names.len() - 1]),
            ("Ready", "Age"),
            "{plural}"
        );
        let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
        assert_eq!(
            status["conditions"]["x-kubernetes-list-type"], "map",
            "{plural}"
        );
        assert!(status["observedGeneration"].is_object(), "{plural}");
    }
}

#[test]
fn documentation_of_profiles_says_their_values() {
    use dragonfly_crds::distribution::Profile;
    let crds = crdgen::crds().unwrap();
    let spec = &crds[0].1["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let text = |path: &str| {
        let description = spec
            .pointer(path)
            .and_then(|field| field["description"].as_str());
        description
            .unwrap_or_else(|| panic!("{path}"))
            .replace('\n', " ")
    };
    let profile = text("/properties/profile");
    let http = "/properties/sources/properties/http/properties";
    for preset in [Profile::Light, Profile::Standard, Profile::Heavy].map(Profile::preset) {
        let rows = [
            (
                text("/properties/seeds/properties/replicas"),
                preset.seeds.to_string(),
            ),
            (
                text("/properties/storage/properties/quota"),
                preset.quota.to_owned(),
            ),
            (
                text("/properties/storage/properties/maxAge"),
                preset.max_age.to_owned(),
            ),
            (
                text("/properties/storage/properties/reserveFreePercent"),
                preset.reserve_free_percent.to_string(),
            ),
            (
                text(&format!("{http}/maxConcurrentRequestsPerOrigin")),
                preset.requests_per_origin.to_string(),
            ),
            (
                text(&format!("{http}/parallelRanges")),
                preset.parallel_ranges.to_string(),
            ),
        ];
        for (field, value) in rows {
            assert!(field.contains(&value), "{field:?} does not say {value}");
            assert!(profile.contains(&value), "{profile:?} does not say {value}");
        }
    }
}
