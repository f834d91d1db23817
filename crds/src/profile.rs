//! The values behind `spec.profile`: defaults of fields that are left out.
//!
//! Invariant: `spec.profile`'s documentation and the rule on `spec.seeds.emitters` say the same
//! numbers (tested), since people and the apiserver know only those.

use crate::distribution::{Permission, Profile};

/// One preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// `spec.seeds.replicas`.
    pub seeds: i32,
    /// `spec.storage.quota` on disk.
    pub quota: &'static str,
    /// `spec.storage.maxAge`.
    pub max_age: &'static str,
    /// `spec.storage.reserveFreePercent`.
    pub reserve_free_percent: i32,
    /// `spec.sources.http.maxConcurrentRequestsPerOrigin`.
    pub requests_per_origin: i32,
    /// `spec.sources.http.parallelRanges`.
    pub parallel_ranges: i32,
    /// `spec.sources.http.addresses.loopback`.
    pub loopback: Permission,
}

/// What part of the quota on disk is the default in memory.
pub const MEMORY_SHARE: u64 = 8;

impl Profile {
    /// The defaults that this profile stands for.
    pub const fn preset(self) -> Preset {
        match self {
            Self::Light => Preset {
                seeds: 1,
                quota: "10Gi",
                max_age: "24h",
                reserve_free_percent: 5,
                requests_per_origin: 8,
                parallel_ranges: 4,
                loopback: Permission::Allowed,
            },
            Self::Standard => Preset {
                seeds: 1,
                quota: "100Gi",
                max_age: "168h",
                reserve_free_percent: 20,
                requests_per_origin: 32,
                parallel_ranges: 4,
                loopback: Permission::Never,
            },
            Self::Heavy => Preset {
                seeds: 3,
                quota: "1Ti",
                max_age: "720h",
                reserve_free_percent: 20,
                requests_per_origin: 128,
                parallel_ranges: 8,
                loopback: Permission::Never,
            },
        }
    }
}
