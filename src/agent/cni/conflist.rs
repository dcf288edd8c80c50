//! Edits a CNI configuration as text: what others wrote stays as they wrote it, byte for byte.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cni::NAME;
use crate::cni::spec::VERSIONS;

/// Why a file cannot be used.
pub(super) type Reason = String;

#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "cniVersion", borrow, default)]
    version: Cow<'a, str>,
    #[serde(rename = "cniVersions", default)]
    versions: Vec<Value>,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Single<'a> {
    #[serde(rename = "cniVersion", borrow, default)]
    version: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

/// A plugin in the text of a list.
struct Plugin {
    at: Range<usize>,
    ours: bool,
}

/// The list with `entry` in it, once; `None` when it is there as it should be.
///
/// # Errors
/// The text is no list that the entry can be chained in.
pub(super) fn with_entry(text: &str, entry: &str) -> Result<Option<String>, Reason> {
    let list = parse(text)?;
    if list.versions.is_empty() {
        check_version(&list.version)?;
    }
    let plugins = plugins(text, &list)?;
    let ours: Vec<&Plugin> = plugins.iter().filter(|plugin| plugin.ours).collect();
    if let [one] = ours[..]
        && same(&text[one.at.clone()], entry)
    {
        return Ok(None);
    }
    if !ours.is_empty() {
        // Of another version, or there twice: what is left without them is a list like any other.
        let cleared = without_entry(text)?.unwrap_or_default();
        return with_entry(&cleared, entry).map(|list| Some(list.unwrap_or(cleared)));
    }
    let Some(last) = plugins.last() else { return Err("it lists no plugin".to_owned()) };
    let gap = white_before(text, last.at.start);
    let (head, tail) = text.split_at(last.at.end);
    Ok(Some(format!("{head},{gap}{entry}{tail}")))
}

/// The list without the entry; `None` when there is none.
///
/// # Errors
/// The text is no list.
pub(super) fn without_entry(text: &str) -> Result<Option<String>, Reason> {
    let plugins = plugins(text, &parse(text)?)?;
    let mut rest = text.to_owned();
    // From the end, so that what is before stays where it was found.
    for (index, plugin) in plugins.iter().enumerate().rev().filter(|(_, plugin)| plugin.ours) {
        let before = index.checked_sub(1).and_then(|index| plugins.get(index));
        let after = plugins.get(index + 1);
        let cut = match (before, after) {
            (Some(before), _) => before.at.end..plugin.at.end,
            (None, Some(after)) => plugin.at.start..after.at.start,
            (None, None) => return Err("it lists no plugin but Warren's".to_owned()),
        };
        rest.replace_range(cut, "");
    }
    Ok((rest != text).then_some(rest))
}

/// A list that holds the plugin of `text`, a configuration of one plugin, and then `entry`.
///
/// # Errors
/// The text is no such configuration.
pub(super) fn to_list(text: &str, entry: &str) -> Result<String, Reason> {
    let single: Single<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check_version(&single.version)?;
    let (version, name) = (Value::from(&*single.version), Value::from(&*single.name));
    let plugin = text.trim();
    Ok(format!("{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n{plugin},\n{entry}\n  ]\n}}\n"))
}

/// Whether the text is the configuration of the loopback interface, which is never a pod's network.
pub(super) fn is_loopback(text: &str) -> bool {
    serde_json::from_str::<Single<'_>>(text).is_ok_and(|single| single.kind == "loopback")
}

fn parse(text: &str) -> Result<List<'_>, Reason> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn plugins(text: &str, list: &List<'_>) -> Result<Vec<Plugin>, Reason> {
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    let mut plugins = Vec::with_capacity(list.plugins.len());
    for plugin in &list.plugins {
        let kind: Kind<'_> = serde_json::from_str(plugin.get()).map_err(|error| error.to_string())?;
        // The plugin was borrowed from the text: it lies in it.
        let start = plugin.get().as_ptr() as usize - text.as_ptr() as usize;
        plugins.push(Plugin { at: start..start + plugin.get().len(), ours: kind.kind == NAME });
    }
    Ok(plugins)
}

fn check_version(version: &str) -> Result<(), Reason> {
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    Err(format!("its cniVersion {version:?} is not one of {}", VERSIONS.join(", ")))
}

/// The white space that ends at `position`.
fn white_before(text: &str, position: usize) -> &str {
    let before = text.get(..position).unwrap_or_default();
    before.get(before.trim_end().len()..).unwrap_or_default()
}

fn same(left: &str, right: &str) -> bool {
    let parse = |text| serde_json::from_str::<Value>(text).ok();
    parse(left).is_some_and(|left| Some(left) == parse(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"warren","socket":"/s","excludeNamespaces":["kube-system"]}"#;
    const PRETTY: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"later\": {\"b\": 1, \"a\": 2},\n  \"plugins\": [\n    \
                          {\n      \"type\": \"bridge\"\n    },\n    {\"type\": \"portmap\" }\n  ]\n}\n";

    #[test]
    fn the_entry_comes_last_and_goes_without_a_trace() {
        let dense = r#"{"cniVersion":"0.3.1","plugins":[{"type":"ptp"}],"name":"a"}"#;
        for text in [PRETTY, dense, &PRETTY.replace('\n', "\r\n"), &PRETTY.replace("\"portmap\"", "\"p\\u006frtmäp\"")] {
            let with = with_entry(text, ENTRY).expect("a list").expect("a change");
            let value: Value = serde_json::from_str(&with).expect("JSON");
            let plugins = value["plugins"].as_array().expect("a list");
            assert_eq!(plugins.last().map(|entry| &entry["type"]), Some(&"warren".into()), "{with}");
            assert_eq!(with_entry(&with, ENTRY), Ok(None), "once is enough");
            assert_eq!(without_entry(&with), Ok(Some(text.to_owned())), "byte for byte");
            assert_eq!(without_entry(text), Ok(None));
        }
        assert!(
            with_entry(PRETTY, ENTRY).expect("a list").expect("a change").contains("\n    {\"type\":\"warren\""),
            "indented like the others"
        );
    }

    #[test]
    fn an_older_entry_is_replaced_wherever_it_is_and_a_second_one_removed() {
        let cases = [
            r#"{"cniVersion":"1.1.0","plugins":[{"type":"a"},{"type":"warren","old":1},{"type":"b"}]}"#,
            r#"{"cniVersion":"1.1.0","plugins":[{"type":"warren"},{"type":"a"},{"type":"b"}]}"#,
            r#"{"cniVersion":"1.1.0","plugins":[{"type":"a"},{"type":"warren"},{"type":"b"},{"type":"warren"}]}"#,
        ];
        for text in cases {
            let with = with_entry(text, ENTRY).expect("a list").expect("a change");
            assert_eq!(with, format!(r#"{{"cniVersion":"1.1.0","plugins":[{{"type":"a"}},{{"type":"b"}},{ENTRY}]}}"#));
        }
    }

    #[test]
    fn an_entry_that_others_wrote_anew_or_chained_behind_is_left() {
        let text = r#"{"cniVersion":"1.1.0","plugins":[{"type":"a"}, {"type":"warren", "excludeNamespaces": ["kube-system"], "socket":"/s"},{"type":"b"}]}"#;
        assert_eq!(with_entry(text, ENTRY), Ok(None));
    }

    #[test]
    fn what_is_no_usable_list_is_told() {
        let half = &PRETTY[..PRETTY.len() / 2];
        for text in [
            "",
            half,
            "[]",
            r#"{"plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[{}]}"#,
            r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"warren"}]}"#,
        ] {
            assert!(with_entry(text, ENTRY).is_err(), "{text}");
        }
        let many = r#"{"cniVersions":["0.4.0","1.2.0"],"plugins":[{"type":"a"}]}"#;
        assert!(with_entry(many, ENTRY).expect("the runtime chooses").is_some());
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let text =
            "{\"cniVersion\":\"0.4.0\", \"name\":\"a \\\"b\\\"\",\n \"type\":\"flannel\", \"delegate\":{\"isDefaultGateway\":true}}\n";
        let list = to_list(text, ENTRY).expect("a list");
        assert!(list.contains(text.trim()), "as it was written: {list}");
        let value: Value = serde_json::from_str(&list).expect("JSON");
        assert_eq!((&value["cniVersion"], &value["name"]), (&"0.4.0".into(), &"a \"b\"".into()));
        assert_eq!(with_entry(&list, ENTRY), Ok(None), "the entry is in it");
        for broken in
            ["{", "{}", r#"{"name":"a","type":"b"}"#, r#"{"cniVersion":"1.0.0","type":"b"}"#, r#"{"cniVersion":"1.0.0","name":"b"}"#]
        {
            assert!(to_list(broken, ENTRY).is_err(), "{broken}");
        }
        assert!(is_loopback(r#"{"cniVersion":"0.3.1","name":"lo","type":"loopback"}"#) && !is_loopback(text) && !is_loopback(PRETTY));
    }
}
