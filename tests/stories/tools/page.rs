//! A metrics page, read as strictly as the OpenMetrics text format asks for.

use std::collections::BTreeMap;

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    /// Whether it has all these labels with these values.
    pub(crate) fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.iter().any(|(own, is)| own == name && is == value))
    }
}

/// The samples of that name.
pub(crate) fn samples(page: &str, name: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).map(sample).filter(|sample| sample.name == name).collect()
}

/// Every family has a type before its samples and is in one piece, names and labels are well formed, nothing is there twice,
/// and the page is whole.
pub(crate) fn assert_openmetrics(page: &str) {
    let body = page.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("not whole: {page}"));
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    let mut helps: Vec<String> = Vec::new();
    let mut current = String::new();
    let mut seen = Vec::new();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, family, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            assert_name(family);
            match kind {
                "TYPE" => {
                    assert!(matches!(rest, "counter" | "gauge" | "histogram" | "info" | "unknown"), "{line}");
                    assert!(types.insert(family.to_owned(), rest.to_owned()).is_none(), "a family in two pieces: {line}");
                    family.clone_into(&mut current);
                }
                "HELP" => {
                    assert!(!rest.is_empty() && !helps.contains(&family.to_owned()), "{line}");
                    helps.push(family.to_owned());
                }
                "UNIT" => assert!(family.ends_with(&format!("_{rest}")), "a unit that is not the name's end: {line}"),
                _ => panic!("no such comment: {line}"),
            }
            continue;
        }
        let sample = sample(line);
        let kind = types.get(&current).unwrap_or_else(|| panic!("no TYPE before {line}"));
        match kind.as_str() {
            "counter" => {
                assert_eq!(sample.name, format!("{current}_total"), "{line}");
                assert!(sample.value >= 0.0, "{line}");
            }
            "histogram" => assert!(sample.name.starts_with(&current), "{line}"),
            _ => assert_eq!(sample.name, current, "{line}"),
        }
        let key = (sample.name, sample.labels);
        assert!(!seen.contains(&key), "twice: {line}");
        seen.push(key);
    }
    for family in types.keys() {
        assert!(helps.contains(family), "{family} has no HELP");
    }
    assert!(!seen.is_empty());
}

/// `name{label="value",…} number`
fn sample(line: &str) -> Sample {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    let (name, labels) = match head.split_once('{') {
        None => (head, Vec::new()),
        Some((name, rest)) => (name, labels(rest.strip_suffix('}').unwrap_or_else(|| panic!("no end of labels: {line}")))),
    };
    assert_name(name);
    Sample { name: name.to_owned(), labels, value }
}

fn labels(mut rest: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (name, tail) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {rest}"));
        assert_name(name);
        let (mut value, mut chars, mut end) = (String::new(), tail.char_indices(), None);
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    end = Some(at);
                    break;
                }
                '\\' => value.extend(chars.next().map(|(_, char)| if char == 'n' { '\n' } else { char })),
                _ => value.push(char),
            }
        }
        rest = &tail[end.unwrap_or_else(|| panic!("no end of a value: {tail}")) + 1..];
        assert!(!labels.iter().any(|(other, _)| other == name), "{name} twice");
        labels.push((name.to_owned(), value));
        rest = if rest.is_empty() { rest } else { rest.strip_prefix(',').unwrap_or_else(|| panic!("no comma: {rest}")) };
    }
    labels
}

fn assert_name(name: &str) {
    let good = |at: usize, char: char| char.is_ascii_alphabetic() || char == '_' || (at > 0 && (char.is_ascii_digit() || char == ':'));
    assert!(!name.is_empty() && name.chars().enumerate().all(|(at, char)| good(at, char)), "no name: {name:?}");
}
