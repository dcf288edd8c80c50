use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [ {\"type\": \"bridge\"} ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"type\": \"bridge\"}\n";

/// A node's directories and a program.
struct Node {
    _directory: tempfile::TempDir,
    settings: Settings,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        for name in ["net.d", "bin"] {
            fs::create_dir(at(name)).expect("directory");
        }
        fs::write(at("program"), "version 1").expect("program");
        let exclude = vec!["kube-system".to_owned()];
        let settings = Settings { program: at("program"), ..Settings::new(at("cni.sock"), at("net.d"), at("bin"), exclude) };
        Self { _directory: directory, settings }
    }

    fn installer(&self) -> Installer {
        Installer::new(self.settings.clone(), self.settings.entry().expect("an entry"))
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.settings.conf_dir.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).expect("write");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).expect("read")
    }

    fn has_entry(&self, name: &str) -> bool {
        let list: serde_json::Value = serde_json::from_str(&self.read(name)).expect("JSON");
        let plugins = list["plugins"].as_array().expect("plugins");
        plugins.last().expect("plugins")["type"] == "warren"
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("list");
        let mut names: Vec<String> = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_first_list_gets_the_entry_once_and_is_given_back_as_it_was() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.write("20-other.conflist", LIST);
    node.write("05-old.conflist.bak", "no JSON");
    let mut installer = node.installer();
    assert!(installer.ensure().expect("installed"));
    assert!(node.has_entry("10-pods.conflist") && !node.has_entry("20-other.conflist"));
    let program = node.settings.bin_dir.join(NAME);
    assert_eq!(fs::read_to_string(&program).expect("program"), "version 1");
    assert_eq!(fs::metadata(&program).expect("program").permissions().mode() & 0o777, 0o755);
    let written = files::fingerprint(&node.conf("10-pods.conflist"));
    assert!(!installer.ensure().expect("still"));
    assert!(!node.installer().ensure().expect("a successor finds it"));
    assert_eq!(files::fingerprint(&node.conf("10-pods.conflist")), written, "runtimes read their configuration anew at every change");

    fs::write(node.settings.bin_dir.join(outside::FILE), "{}").expect("state");
    remove(&node.settings).expect("removed");
    assert_eq!((node.read("10-pods.conflist").as_str(), node.read("20-other.conflist").as_str()), (LIST, LIST));
    assert_eq!(node.names(&node.settings.bin_dir), [""; 0]);
    assert_eq!(node.names(&node.settings.conf_dir), ["05-old.conflist.bak", "10-pods.conflist", "20-other.conflist"]);
    remove(&node.settings).expect("nothing left to remove");
}

#[test]
fn what_others_rewrite_or_remove_is_put_back() {
    let node = Node::new();
    let mut installer = node.installer();
    let error = installer.ensure().expect_err("no configuration yet");
    assert_eq!(error.code().id, "W9004");
    node.write("10-pods.conflist", LIST);
    installer.ensure().expect("installed");

    let newer = LIST.replace("bridge", "ptp");
    node.write("10-pods.conflist", &newer);
    assert!(installer.ensure().expect("repaired"));
    assert!(node.has_entry("10-pods.conflist") && node.read("10-pods.conflist").contains("ptp"));

    fs::remove_file(node.settings.bin_dir.join(NAME)).expect("remove");
    assert!(installer.ensure().expect("repaired"));
    fs::write(node.settings.bin_dir.join(NAME), "another").expect("overwrite");
    assert!(installer.ensure().expect("repaired"));
    assert_eq!(fs::read_to_string(node.settings.bin_dir.join(NAME)).expect("program"), "version 1");

    fs::write(&node.settings.program, "version 2").expect("upgrade");
    assert!(node.installer().ensure().expect("upgraded"));
    assert_eq!(fs::read_to_string(node.settings.bin_dir.join(NAME)).expect("program"), "version 2");

    node.write("00-first.conflist", LIST);
    assert!(installer.ensure().expect("repaired"), "another list comes first now");
    assert!(node.has_entry("00-first.conflist"));
    remove(&node.settings).expect("removed");
    assert_eq!((node.read("00-first.conflist"), node.read("10-pods.conflist")), (LIST.to_owned(), newer));
}

#[test]
fn a_half_written_file_is_waited_for_and_an_abandoned_one_passed_over() {
    let node = Node::new();
    node.write("10-pods.conflist", &LIST[..LIST.len() / 2]);
    node.write("20-next.conflist", LIST);
    let mut installer = node.installer();
    assert!(installer.ensure().expect_err("half").to_string().contains("10-pods.conflist"));
    assert_eq!(node.read("20-next.conflist"), LIST, "not touched meanwhile");
    node.write("10-pods.conflist", LIST);
    installer.ensure().expect("whole");
    assert!(node.has_entry("10-pods.conflist"));

    node.write("10-pods.conflist", "{");
    let file = fs::File::options().write(true).open(node.conf("10-pods.conflist")).expect("open");
    file.set_modified(std::time::SystemTime::now() - ABANDONED * 2).expect("an old file");
    installer.ensure().expect("the next");
    assert!(node.has_entry("20-next.conflist"));
    remove(&node.settings).expect("removed");
    assert_eq!((node.read("10-pods.conflist").as_str(), node.read("20-next.conflist").as_str()), ("{", LIST));
}

#[test]
fn a_single_plugin_becomes_a_list_and_a_single_plugin_again() {
    let node = Node::new();
    let loopback = SINGLE.replace("bridge", "loopback");
    node.write("00-loopback.conf", &loopback);
    node.write("10-pods.conf", SINGLE);
    let mut installer = node.installer();
    installer.ensure().expect("installed");
    assert_eq!(node.names(&node.settings.conf_dir), ["00-loopback.conf", "10-pods.conf.before-warren", "10-pods.conflist"]);
    assert!(node.has_entry("10-pods.conflist"));
    assert!(!installer.ensure().expect("still"));

    let newer = SINGLE.replace("pods", "again");
    node.write("10-pods.conf", &newer);
    assert!(installer.ensure().expect("repaired"));
    assert!(node.read("10-pods.conflist").contains("again"));
    remove(&node.settings).expect("removed");
    assert_eq!(node.names(&node.settings.conf_dir), ["00-loopback.conf", "10-pods.conf"]);
    assert_eq!((node.read("00-loopback.conf"), node.read("10-pods.conf")), (loopback, newer));
}

#[test]
fn a_link_is_followed_and_a_broken_one_told() {
    let node = Node::new();
    fs::create_dir(node.conf("real")).expect("directory");
    node.write("real/pods", LIST);
    symlink("real/pods", node.conf("10-pods.conflist")).expect("link");
    node.installer().ensure().expect("installed");
    assert!(node.has_entry("real/pods") && node.conf("10-pods.conflist").is_symlink());
    remove(&node.settings).expect("removed");
    assert_eq!(node.read("real/pods"), LIST);
    symlink("/nowhere/pods", node.conf("00-pods.conflist")).expect("link");
    assert!(node.installer().ensure().expect_err("a link to nowhere").to_string().contains("00-pods.conflist"));
}
