//! Manifests from files, checked as an apiserver checks them.
//!
//! Light mode reads what `kubectl apply --validate=strict -f DIR` would: every `.yaml`, `.yml` and
//! `.json` of a directory (not of those below it), several documents a file. Objects of Kubernetes
//! itself are skipped and reported as such; a kind that is neither is a mistake.
//!
//! ```no_run
//! # use dragonfly_crds::manifest::load_dir;
//! # fn run(in_force: Option<&dragonfly_crds::Policy>) -> Result<(), Box<dyn std::error::Error>> {
//! // At the start, and again whenever the directory may have changed:
//! let manifests = match load_dir("config/samples".as_ref()) {
//!     Ok(manifests) => manifests,
//!     Err(errors) => return errors.into_iter().next().map_or(Ok(()), |error| Err(error.into())),
//! };
//! let distribution = manifests.choose(None)?;
//! if let Ok(chosen) = manifests.resolve(distribution, in_force) {
//!     let changed = in_force.is_none_or(|policy| !policy.same_as(&chosen.policy));
//!     # let _ = changed;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: all or nothing (one mistake anywhere gives no manifests, so the last good policy
//! stays); every mistake names file, line and field; files over [`MAX_FILE`] are not parsed; the
//! result does not depend on the order in which a directory lists its entries.

mod load;
mod object;
mod yaml;

use std::fmt;

use crate::field::{Invalid, Reason};
use crate::{Distribution, Policy, Preheat, SchedulerPool, resolve};

pub use load::{load_dir, parse};
pub use object::light_uid;
pub use yaml::{Places, Position};

/// Largest file.
pub const MAX_FILE: usize = 1 << 20;
/// Most files of a directory, and most objects in them.
pub const MAX_FILES: usize = 1000;

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Path as it was given, or found in the directory that was given.
    pub file: String,
    /// Where in it; line 0 when the file as a whole is meant.
    pub position: Position,
    /// `Distribution dragonfly/default`; empty where no object could be told.
    pub object: String,
    /// `spec.storage.quota`; empty where no field is meant.
    pub field: String,
    /// What kind of mistake.
    pub reason: Reason,
    /// The value and what it must be.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.position.line > 0 {
            write!(f, ":{}:{}", self.position.line, self.position.column)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        write!(f, ": {}: {}", self.reason, self.message)
    }
}

impl std::error::Error for ManifestError {}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<K> {
    /// The object, defaults applied, with namespace and UID.
    pub object: K,
    /// Its file.
    pub file: String,
    /// Its fields' places.
    pub places: Places,
}

/// What was not read, and why; worth one line of log each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub file: String,
    /// `Namespace dragonfly`, or what kind of entry it is.
    pub what: String,
}

/// Objects of a directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// Meshes.
    pub distributions: Vec<Loaded<Distribution>>,
    /// Pools.
    pub pools: Vec<Loaded<SchedulerPool>>,
    /// What nodes are to get ahead.
    pub preheats: Vec<Loaded<Preheat>>,
    /// What is not for us.
    pub skipped: Vec<Skipped>,
}

/// What light mode runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen<'a> {
    /// The mesh.
    pub distribution: &'a Loaded<Distribution>,
    /// The pool that it refers to.
    pub pool: Option<&'a Loaded<SchedulerPool>>,
    /// The policy.
    pub policy: Policy,
}

impl Chosen<'_> {
    /// Whether a mesh can be run without Kubernetes. Most of what only a cluster has means nothing there;
    /// this is about what would be promised and not kept.
    ///
    /// # Errors
    /// The field that asks for it.
    pub fn runs_alone(&self) -> Result<(), ManifestError> {
        let item = self.distribution;
        if item.object.spec.security.issuer_ref.is_none() {
            return Ok(());
        }
        let message = "there is no cert-manager without Kubernetes, where the mesh's CA signs itself: \
                       leave it out";
        let error = Invalid {
            object: object::label("Distribution", &item.object.metadata),
            field: "spec.security.issuerRef".to_owned(),
            reason: Reason::InvalidValue,
            message: message.to_owned(),
        };
        Err(place(item, error))
    }
}

/// Why there is not exactly one Distribution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// None at all.
    #[error(
        "no Distribution in the manifests; one is needed (kind: Distribution, apiVersion: d7y.io/v1alpha1)"
    )]
    None,
    /// None of that name.
    #[error("no Distribution {wanted} in the manifests; there is {found}")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// More than one.
    #[error("{found}: one process runs one Distribution; name the one to run")]
    Several {
        /// What there is.
        found: String,
    },
}

impl Manifests {
    /// The Distribution called `name` (`name` or `namespace/name`), or the only one.
    ///
    /// # Errors
    /// When there is none such, or several.
    pub fn choose(&self, name: Option<&str>) -> Result<&Loaded<Distribution>, ChooseError> {
        let matches = |item: &&Loaded<Distribution>| {
            let metadata = &item.object.metadata;
            let own = metadata.name.as_deref().unwrap_or_default();
            let space = metadata.namespace.as_deref().unwrap_or_default();
            name.is_none_or(|wanted| match wanted.split_once('/') {
                Some(parts) => parts == (space, own),
                None => wanted == own,
            })
        };
        let found: Vec<_> = self.distributions.iter().filter(matches).collect();
        let list = |items: &mut dyn Iterator<Item = &Loaded<Distribution>>| {
            let names: Vec<_> = items
                .map(|item| {
                    format!(
                        "{} ({})",
                        object::label("Distribution", &item.object.metadata),
                        item.file
                    )
                })
                .collect();
            names.join(", ")
        };
        match (found.as_slice(), name) {
            ([one], _) => Ok(one),
            ([], Some(wanted)) if !self.distributions.is_empty() => Err(ChooseError::NotFound {
                wanted: wanted.to_owned(),
                found: list(&mut self.distributions.iter()),
            }),
            ([], _) => Err(ChooseError::None),
            _ => Err(ChooseError::Several {
                found: list(&mut found.iter().copied()),
            }),
        }
    }

    /// Resolves one Distribution as the operator does.
    ///
    /// # Errors
    /// The resolver's, with the file and line of each field.
    pub fn resolve<'a>(
        &'a self,
        distribution: &'a Loaded<Distribution>,
        previous: Option<&Policy>,
    ) -> Result<Chosen<'a>, Vec<ManifestError>> {
        let metadata = &distribution.object.metadata;
        let wanted = distribution
            .object
            .spec
            .scheduler_pool_ref
            .as_ref()
            .map(|pool| &pool.name);
        let pool = wanted.and_then(|wanted| {
            self.pools.iter().find(|pool| {
                pool.object.metadata.name.as_ref() == Some(wanted)
                    && pool.object.metadata.namespace == metadata.namespace
            })
        });
        match resolve(
            &distribution.object,
            pool.map(|pool| &pool.object),
            previous,
        ) {
            Ok(policy) => Ok(Chosen {
                distribution,
                pool,
                policy,
            }),
            Err(errors) => Err(errors
                .into_iter()
                .map(|error| match pool {
                    Some(pool) if error.object.starts_with("SchedulerPool ") => place(pool, error),
                    _ => place(distribution, error),
                })
                .collect()),
        }
    }
}

fn place<K>(item: &Loaded<K>, error: Invalid) -> ManifestError {
    ManifestError {
        file: item.file.clone(),
        position: item.places.find(&error.field),
        object: error.object,
        field: error.field,
        reason: error.reason,
        message: error.message,
    }
}
