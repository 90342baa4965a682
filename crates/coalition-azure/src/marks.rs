//! Marks as tags. Azure compares the names of tags without case, and may give them back in another.

use std::collections::BTreeMap;

use coalition_cloud::{Marks, Owner};
use serde_json::{Map, Value};

const BRIDGE: &str = "coalition:bridge";
const COALITION: &str = "coalition:coalition";
const GRANT: &str = "coalition:grant";
const INSTANCE: &str = "coalition:instance";
const OFFER: &str = "coalition:offer";
const UNTIL: &str = "coalition:until";
/// Longest value of a tag, in characters.
const MAX_VALUE: usize = 256;

/// Tags of one thing as Azure lists them.
pub(crate) type Tags = BTreeMap<String, String>;

/// What everything that is made carries.
pub(crate) fn tags_of(marks: &Marks) -> Result<Map<String, Value>, String> {
    let pairs = [
        (BRIDGE, marks.bridge.clone()),
        (COALITION, marks.coalition.clone()),
        (GRANT, marks.grant.clone()),
        (INSTANCE, marks.instance.clone()),
        (OFFER, marks.offer.clone()),
        (UNTIL, marks.until_s.to_string()),
    ];
    if let Some((name, value)) = pairs.iter().find(|(_, value)| value.chars().count() > MAX_VALUE) {
        return Err(format!("{name} has {} characters; Azure takes {MAX_VALUE}", value.chars().count()));
    }
    Ok(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
}

fn tag<'a>(tags: &'a Tags, name: &str) -> Option<&'a str> {
    tags.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The instance that this belongs to, when it is the owner's.
pub(crate) fn instance_of<'a>(tags: &'a Tags, owner: Owner<'_>) -> Option<&'a str> {
    let own = tag(tags, BRIDGE) == Some(owner.bridge) && tag(tags, OFFER) == Some(owner.offer);
    tag(tags, INSTANCE).filter(|instance| own && !instance.is_empty() && instance.len() <= 64)
}

/// Whether a thing was made for exactly these marks, its end aside.
pub(crate) fn is_for(tags: &Tags, marks: &Marks) -> bool {
    [
        (BRIDGE, &marks.bridge),
        (COALITION, &marks.coalition),
        (GRANT, &marks.grant),
        (INSTANCE, &marks.instance),
        (OFFER, &marks.offer),
    ]
    .iter()
    .all(|(name, value)| tag(tags, name) == Some(value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case_and_values_with_it() {
        let text = |text: &str| text.to_owned();
        let tags: Tags = [("Coalition:Bridge", "b"), ("coalition:OFFER", "o"), ("coalition:instance", "i")]
            .map(|(k, v)| (text(k), text(v)))
            .into();
        assert_eq!(instance_of(&tags, Owner { bridge: "b", offer: "o" }), Some("i"));
        assert_eq!(instance_of(&tags, Owner { bridge: "B", offer: "o" }), None);
        assert_eq!(instance_of(&tags, Owner { bridge: "b", offer: "other" }), None);
        assert_eq!(instance_of(&Tags::new(), Owner { bridge: "", offer: "" }), None);
    }
}
