//! The images of this project: one line each.

use std::path::Path;

use dragonfly_e2e::{Failed, Result};

use super::{Architecture, Image, NONROOT, Tree, base};

/// An image of this project.
#[derive(Debug)]
pub struct Component {
    /// The image's name, and its program's in `/usr/bin`.
    pub name: &'static str,
    /// Other names of the program.
    pub aliases: &'static [&'static str],
    /// Who it runs as unless the pod says otherwise.
    pub user: u32,
}

/// All of them.
pub const COMPONENTS: [Component; 3] = [
    Component {
        name: "dragonfly",
        aliases: &["dfget"],
        user: NONROOT,
    },
    Component {
        name: "dragonfly-operator",
        aliases: &[],
        user: NONROOT,
    },
    Component {
        name: "test-origin",
        aliases: &[],
        user: NONROOT,
    },
];

/// A component by its name.
///
/// # Errors
/// There is none.
pub fn component(name: &str) -> Result<&'static Component> {
    COMPONENTS.iter().find(|c| c.name == name).ok_or_else(|| {
        let names: Vec<_> = COMPONENTS.iter().map(|c| c.name).collect();
        Failed::at(name, format!("is none of the images {}", names.join(", ")))
    })
}

impl Component {
    /// The image of a built program.
    ///
    /// # Errors
    /// The program or a library of it cannot be read, or is for another processor.
    pub fn image(&self, architecture: Architecture, program: &Path) -> Result<Image> {
        let path = format!("/usr/bin/{}", self.name);
        let mut tree = Tree::default();
        tree.copy(path.trim_start_matches('/'), 0o755, program)?;
        for alias in self.aliases {
            tree.link(&format!("usr/bin/{alias}"), self.name);
        }
        let image = Image::new(architecture, &[&path]).user(self.user);
        image.layer(base(architecture, &[program])?)?.layer(tree)
    }
}
