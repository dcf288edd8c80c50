//! What the agent leaves on its node for the time in which it is away: the namespaces that are not in the mesh.
//!
//! The file lies beside the plugin's program, which finds it by its own path, and outlives a reboot.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::{Error, Result, Str, code};

/// Its name.
pub const FILE: &str = "warren.state";

/// Longer than the names of 50 000 namespaces.
const MAX_BYTES: u64 = 4 << 20;

/// Namespaces of which the agent knew, when it last looked, that none of their pods is to be in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Their names.
    pub outside: BTreeSet<Str>,
}

impl Outside {
    /// Reads the file. It is small next to starting a pod, and only read when the agent does not answer.
    ///
    /// # Errors
    /// BAD_FILE: it is not there, too long, or not understood.
    pub fn read(path: &Path) -> Result<Self> {
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| Error::caused(&code::BAD_FILE, path.display().to_string(), error);
        let mut text = String::new();
        let file = File::open(path).map_err(|error| broken(error.into()))?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| broken(error.into()))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::new(&code::BAD_FILE, format!("{}: longer than {MAX_BYTES} bytes", path.display())));
        }
        serde_json::from_str(&text).map_err(|error| broken(error.into()))
    }

    /// The file's content.
    ///
    /// # Errors
    /// BAD_FILE: it would be longer than [`Outside::read`] takes.
    pub fn text(&self) -> Result<String> {
        let text = serde_json::to_string(self).map_err(|error| Error::caused(&code::BAD_FILE, FILE, error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::new(&code::BAD_FILE, format!("{FILE} would be longer than {MAX_BYTES} bytes")));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(FILE);
        let outside = Outside { outside: ["default".into(), "build".into()].into() };
        std::fs::write(&path, outside.text().expect("short")).expect("write");
        assert_eq!(Outside::read(&path).expect("understood"), outside);
        std::fs::write(&path, "").expect("write");
        assert_eq!(Outside::read(&path).expect_err("empty").code().id, "W0005");
        assert!(Outside::read(&directory.path().join("none")).is_err());
    }
}
