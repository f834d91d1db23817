//! From objects to a policy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly"
)]

use dragonfly_crds::distribution::{LocalRef, Media, Profile};
use dragonfly_crds::policy::{DecodeError, MAX_ENCODED, Policy};
use dragonfly_crds::{
    Distribution, DistributionSpec, Reason, SchedulerPool, SchedulerPoolSpec, resolve,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn distribution(edit: impl FnOnce(&mut DistributionSpec)) -> Distribution {
    let mut spec = DistributionSpec::default();
    edit(&mut spec);
    let mut object = Distribution::new("default", spec);
    object.metadata.namespace = Some("dragonfly".to_owned());
    object.metadata.uid = Some("6f1d".to_owned());
    object
}

fn pool(name: &str, edit: impl FnOnce(&mut SchedulerPoolSpec)) -> SchedulerPool {
    let mut spec = SchedulerPoolSpec::default();
    edit(&mut spec);
    let mut object = SchedulerPool::new(name, spec);
    object.metadata.namespace = Some("dragonfly".to_owned());
    object
}

fn policy(edit: impl FnOnce(&mut DistributionSpec)) -> Policy {
    resolve(&distribution(edit), None, None).unwrap()
}

#[test]
fn profiles_give_the_defaults_that_they_stand_for() {
    let light = policy(|spec| spec.profile = Profile::Light);
    assert_eq!(light.node.storage.quota_bytes, 10 << 30);
    assert!(light.source_http.allow_loopback && !light.source_http.allow_link_local);
    let heavy = policy(|spec| spec.profile = Profile::Heavy);
    assert_eq!((heavy.scheduler.seeds, heavy.scheduler.emitters), (3, 1));
    assert_eq!(heavy.node.storage.max_age_ms, 720 * 3_600_000);
    assert!(!heavy.source_http.allow_loopback);
    let own = policy(|spec| {
        spec.profile = Profile::Heavy;
        spec.seeds.replicas = Some(5);
        spec.storage.quota = Some("1.5Gi".to_owned());
    });
    assert_eq!(
        (own.scheduler.seeds, own.node.storage.quota_bytes),
        (5, 3 << 29)
    );
    let memory = policy(|spec| spec.storage.media = Media::Memory);
    assert_eq!(memory.node.storage.quota_bytes, (100 << 30) / 8);
}

#[test]
fn a_revision_grows_only_with_the_content() {
    let first = policy(|_| {});
    assert_eq!(first.revision, 1);
    let same = resolve(&distribution(|_| {}), None, Some(&first)).unwrap();
    assert_eq!(same, first);
    // Said in other words.
    let words = distribution(|spec| spec.storage.quota = Some("102400Mi".to_owned()));
    assert!(resolve(&words, None, Some(&first)).unwrap().same_as(&first));
    let changed = distribution(|spec| spec.storage.quota = Some("1Gi".to_owned()));
    let second = resolve(&changed, None, Some(&first)).unwrap();
    assert_eq!(second.revision, 2);
    let back = resolve(&distribution(|_| {}), None, Some(&second)).unwrap();
    assert_eq!((back.revision, &back.hash), (3, &first.hash));
    // Another object of the same name begins anew.
    let mut other = changed;
    other.metadata.uid = Some("another".to_owned());
    assert_eq!(resolve(&other, None, Some(&second)).unwrap().revision, 1);
}

#[test]
fn a_mesh_is_known_by_its_uid() {
    let id = |uid: &str| {
        Policy {
            uid: uid.to_owned(),
            ..Policy::default()
        }
        .mesh_id()
    };
    let uuid = id("38556bbe-c110-8731-81e4-d52c652c9c8c");
    assert_eq!(uuid[..4], [0x38, 0x55, 0x6b, 0xbe]);
    assert_eq!(uuid[15], 0x8c);
    assert_ne!(id("a"), id("b"));
}

#[test]
fn a_status_keeps_what_it_does_not_know() {
    let mut value = serde_json::to_value(policy(|_| {})).unwrap();
    value["later"] = json!({"a": 1});
    value["hash"] = dragonfly_crds::policy::content_hash(&value).into();
    let status = json!({"observedGeneration": 3, "policy": value});
    let read: dragonfly_crds::DistributionStatus = serde_json::from_value(status.clone()).unwrap();
    assert_eq!(read.policy().unwrap().unwrap().revision, 1);
    assert_eq!(serde_json::to_value(read).unwrap(), status);
}

#[test]
fn a_pool_is_the_one_referred_to() {
    let with = distribution(|spec| {
        spec.scheduler_pool_ref = Some(LocalRef {
            name: "shared".to_owned(),
        });
    });
    let shared = pool("shared", |spec| spec.strategy.degree = 20);
    assert_eq!(
        resolve(&with, Some(&shared), None)
            .unwrap()
            .scheduler
            .degree,
        20
    );
    for wrong in [None, Some(pool("other", |_| {}))] {
        let errors = resolve(&with, wrong.as_ref(), None).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "Distribution dragonfly/default: spec.schedulerPoolRef.name: Not found: \"shared\": \
             no such SchedulerPool in namespace dragonfly"
        );
    }
    let broken = pool("shared", |spec| spec.gateways = 0);
    let errors = resolve(&with, Some(&broken), None).unwrap_err();
    assert_eq!(errors[0].object, "SchedulerPool dragonfly/shared");
    assert_eq!(errors[0].field, "spec.gateways");
}

#[test]
fn all_mistakes_are_reported_at_once_and_no_secret_is_shown() {
    // What an older schema may have let through.
    let wrong = distribution(|spec| {
        spec.seeds.emitters = 3;
        spec.storage.low_watermark_percent = 100;
        spec.storage.quota = Some("lots".to_owned());
        spec.limits.upload = Some("1Ki".to_owned());
        spec.sources.http.proxy = Some("http://user:hunter2@proxy".to_owned());
    });
    let errors = resolve(&wrong, None, None).unwrap_err();
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    let wanted = [
        "spec.seeds.emitters",
        "spec.limits.upload",
        "spec.storage.quota",
        "spec.storage.lowWatermarkPercent",
        "spec.storage.lowWatermarkPercent",
        "spec.sources.http.proxy",
    ];
    assert_eq!(fields, wanted);
    assert!(
        errors
            .iter()
            .all(|error| !error.message.contains("hunter2"))
    );
    assert_eq!(errors[0].reason, Reason::InvalidValue);
}

#[test]
fn a_policy_too_large_to_send_is_a_mistake_of_the_spec() {
    let host = |index: usize| format!("{index}.{}", "h".repeat(240));
    let wrong = distribution(|spec| {
        spec.sources.http.allowed_hosts = (0..256).map(host).collect();
        spec.sources.http.no_proxy = (0..128).map(host).collect();
        spec.sources.http.proxy = Some("http://proxy".to_owned());
    });
    let errors = resolve(&wrong, None, None).unwrap_err();
    assert!(errors[0].message.contains("at most 65536"), "{}", errors[0]);
}

/// A policy as a newer release would write it.
fn newer(edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let mut value = serde_json::to_value(policy(|_| {})).unwrap();
    edit(value.as_object_mut().unwrap());
    serde_json::to_vec(&value).unwrap()
}

/// The hash that a policy should have, learnt by asking for it: the decoder names no other.
fn rehash(bytes: &[u8]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    value["hash"] = dragonfly_crds::policy::content_hash(&value).into();
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn unknown_fields_are_tolerated_and_unknown_features_are_not() {
    let more = rehash(&newer(|fields| {
        fields.insert("compression".to_owned(), json!({"level": 3}));
    }));
    assert_eq!(Policy::decode(&more).unwrap().node, policy(|_| {}).node);
    let less = rehash(&newer(|fields| {
        fields.remove("scheduler");
    }));
    assert_eq!(Policy::decode(&less).unwrap().scheduler.degree, 12);
    let required = newer(|fields| {
        fields.insert("requiredFeatures".to_owned(), json!(1u64 << 40));
        fields.insert("node".to_owned(), json!("another shape"));
    });
    assert!(
        matches!(Policy::decode(&required), Err(DecodeError::UnknownFeatures(bits)) if bits == 1 << 40)
    );
}

#[test]
fn what_cannot_be_trusted_is_refused() {
    let changed = newer(|fields| fields["node"]["backToSource"] = json!(false));
    assert!(matches!(
        Policy::decode(&changed),
        Err(DecodeError::WrongHash)
    ));
    let senseless = rehash(&newer(|fields| {
        fields["sourceHttp"]["parallelRanges"] = json!(0)
    }));
    assert!(matches!(
        Policy::decode(&senseless),
        Err(DecodeError::OutOfRange(_))
    ));
    let large = vec![b' '; MAX_ENCODED + 1];
    assert!(matches!(
        Policy::decode(&large),
        Err(DecodeError::TooLarge(_))
    ));
    let whole = newer(|_| {});
    for cut in 0..whole.len() {
        assert!(Policy::decode(&whole[..cut]).is_err());
    }
}

#[test]
fn the_encoding_is_pinned() {
    // A change here is a change of what releases say to each other: only ever add.
    let policy = policy(|_| {});
    let text = String::from_utf8(policy.encode().unwrap()).unwrap();
    let wanted = concat!(
        r#"{"uid":"6f1d","revision":1,"hash":"HASH","requiredFeatures":0,"#,
        r#""node":{"transport":"MutualTLS","uploadBytesPerSecond":0,"downloadBytesPerSecond":0,"#,
        r#""backToSource":true,"objective":"Slowest","storage":{"media":"Disk","#,
        r#""quotaBytes":107374182400,"highWatermarkPercent":95,"lowWatermarkPercent":85,"#,
        r#""maxAgeMs":604800000,"reserveFreePercent":20}},"#,
        r#""sourceHttp":{"freshnessMs":30000,"queryInclude":[],"queryExclude":[],"#,
        r#""allowedHosts":[],"caBundle":null,"proxy":null,"noProxy":[],"allowPrivate":true,"#,
        r#""allowLoopback":false,"allowLinkLocal":false,"maxRequestsPerOrigin":32,"#,
        r#""maxBytesPerSecondPerOrigin":0,"parallelRanges":4,"stallTimeoutMs":30000,"#,
        r#""connectTimeoutMs":10000},"scheduler":{"replicas":1,"strategy":"LeastConnected","#,
        r#""degree":12,"candidates":8,"gateways":1,"seeds":1,"emitters":1}}"#,
    );
    assert_eq!(text.replace(&policy.hash, "HASH"), wanted);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Policy::decode(&bytes);
    }

    #[test]
    fn no_change_of_a_policy_makes_the_decoder_panic(at in 0usize..900, byte in any::<u8>()) {
        let mut bytes = policy(|_| {}).encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Policy::decode(&bytes);
    }

    #[test]
    fn resolving_is_deterministic_and_never_panics(
        numbers in proptest::array::uniform6(any::<i32>()),
        texts in proptest::array::uniform4("[0-9.]{0,20}(Mi|Gi|h|s|ms|)"),
    ) {
        let object = distribution(|spec| {
            spec.seeds.replicas = Some(numbers[0]);
            spec.seeds.emitters = numbers[1];
            spec.storage.high_watermark_percent = numbers[2];
            spec.storage.low_watermark_percent = numbers[3];
            spec.storage.reserve_free_percent = Some(numbers[4]);
            spec.sources.http.parallel_ranges = Some(numbers[5]);
            spec.storage.quota = Some(texts[0].clone());
            spec.limits.upload = Some(texts[1].clone());
            spec.storage.max_age = Some(texts[2].clone());
            spec.sources.http.stall_timeout.clone_from(&texts[3]);
        });
        prop_assert_eq!(resolve(&object, None, None), resolve(&object, None, None));
    }

    #[test]
    fn what_resolves_also_encodes_and_decodes(
        seeds in 1..64i32,
        emitters in 1..16i32,
        degree in 2..64i32,
        quota in 64u64..1 << 20,
        hosts in proptest::collection::vec("[a-z]{1,20}[.]example", 0..8),
    ) {
        let object = distribution(|spec| {
            spec.seeds.replicas = Some(seeds);
            spec.seeds.emitters = emitters.min(seeds);
            spec.storage.quota = Some(format!("{quota}Mi"));
            spec.sources.http.allowed_hosts = hosts;
        });
        let pool = pool("p", |spec| spec.strategy.degree = degree);
        let policy = resolve(&object, Some(&pool), None).unwrap();
        prop_assert_eq!(Policy::decode(&policy.encode().unwrap()).unwrap(), policy.clone());
        let value = serde_json::to_value(&policy).unwrap();
        prop_assert_eq!(Policy::from_value(value).unwrap(), policy);
    }
}
