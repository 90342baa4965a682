//! Pages of everything in a project, zone by zone. What cannot be seen makes the whole listing fail: a listing that lacks a
//! zone would be taken for an empty zone.

use std::collections::HashMap;

use coalition_cloud::one_line;
use google_cloud_compute_v1::model::{
    Disk, DiskAggregatedList, DisksScopedList, Instance, InstanceAggregatedList, InstancesScopedList,
};

use crate::action::Action;
use crate::error::{GcpError, failed};

/// What a page says beside its things.
struct Page<S> {
    action: Action,
    kind: Option<String>,
    wanted: &'static str,
    items: HashMap<String, S>,
    unreachables: Vec<String>,
    next: Option<String>,
}

/// The instances of a page in this region's zones, and the token of the next.
pub(crate) fn instances(
    region: &str,
    list: InstanceAggregatedList,
) -> Result<(Vec<Instance>, Option<String>), GcpError> {
    let page = Page {
        action: Action::ListInstances,
        wanted: "compute#instanceAggregatedList",
        kind: list.kind,
        items: list.items,
        unreachables: list.unreachables,
        next: list.next_page_token,
    };
    let warned = list.warning.and_then(|warning| warning.code?.name().map(ToOwned::to_owned));
    page.read(region, warned, |scope: InstancesScopedList| {
        (scope.instances, scope.warning.map(|warning| warning.code.and_then(|code| code.name().map(ToOwned::to_owned))))
    })
}

/// The disks of a page in this region's zones, and the token of the next.
pub(crate) fn disks(region: &str, list: DiskAggregatedList) -> Result<(Vec<Disk>, Option<String>), GcpError> {
    let page = Page {
        action: Action::ListDisks,
        wanted: "compute#diskAggregatedList",
        kind: list.kind,
        items: list.items,
        unreachables: list.unreachables,
        next: list.next_page_token,
    };
    let warned = list.warning.and_then(|warning| warning.code?.name().map(ToOwned::to_owned));
    page.read(region, warned, |scope: DisksScopedList| {
        (scope.disks, scope.warning.map(|warning| warning.code.and_then(|code| code.name().map(ToOwned::to_owned))))
    })
}

impl<S> Page<S> {
    fn read<T>(
        self,
        region: &str,
        warned: Option<String>,
        open: impl Fn(S) -> (Vec<T>, Option<Option<String>>),
    ) -> Result<(Vec<T>, Option<String>), GcpError> {
        let action = self.action;
        if self.kind.as_deref() != Some(self.wanted) {
            return Err(GcpError::Garbled { action, problem: format!("it is no {}", self.wanted) });
        }
        let zones = format!("zones/{region}-");
        let unseen =
            |what: &str, code: &str| failed(action, code, &format!("{} is not listed", one_line(what, 80)), 503);
        if let Some(zone) = self.unreachables.iter().find(|what| what.contains(&zones)) {
            return Err(unseen(zone, "UNREACHABLE"));
        }
        if let Some(code) = warned.filter(|code| is_loss(code)) {
            return Err(unseen("something", &code));
        }
        let mut things = Vec::new();
        for (scope, list) in self.items.into_iter().filter(|(scope, _)| scope.starts_with(&zones)) {
            let (found, warning) = open(list);
            if let Some(code) = warning.map(Option::unwrap_or_default).filter(|code| is_loss(code)) {
                return Err(unseen(&scope, &code));
            }
            things.extend(found);
        }
        Ok((things, self.next.filter(|token| !token.is_empty())))
    }
}

/// Whether a warning says that something is missing: all but that there is nothing.
fn is_loss(code: &str) -> bool {
    code != "NO_RESULTS_ON_PAGE"
}

#[cfg(test)]
mod tests {
    use super::*;
    use coalition_cloud::ErrorKind;

    fn read(text: &str) -> Result<(Vec<Instance>, Option<String>), GcpError> {
        instances("us-east1", serde_json::from_str(text).unwrap())
    }

    #[test]
    fn what_says_nothing_is_no_empty_list() {
        for nothing in ["{}", r#"{"kind":"compute#instanceList"}"#, r#"{"items":{}}"#] {
            let error = read(nothing).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Transient, "{nothing}");
        }
        assert!(read(r#"{"kind":"compute#instanceAggregatedList"}"#).unwrap().0.is_empty());
    }

    #[test]
    fn a_zone_that_is_not_seen_fails_the_listing() {
        let page = |zone: &str, code: &str| {
            format!(
                r#"{{"kind":"compute#instanceAggregatedList","nextPageToken":"n","items":{{
                   "zones/{zone}":{{"warning":{{"code":"{code}"}}}},"zones/us-east1-b":{{"instances":[{{"name":"a"}}]}}}}}}"#
            )
        };
        let (found, next) = read(&page("us-east1-c", "NO_RESULTS_ON_PAGE")).unwrap();
        assert_eq!((found.len(), next.as_deref()), (1, Some("n")));
        for code in ["UNREACHABLE", "PARTIAL_SUCCESS", "A_NEW_ONE"] {
            let error = read(&page("us-east1-c", code)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Transient, "{code}");
        }
        // Another region's trouble hides nothing of this one.
        assert_eq!(read(&page("us-west1-a", "UNREACHABLE")).unwrap().0.len(), 1);
        let away = r#"{"kind":"compute#instanceAggregatedList","unreachables":["projects/p/zones/us-east1-d"]}"#;
        assert!(read(away).unwrap_err().to_string().contains("us-east1-d"));
        assert!(read(&away.replace("east1", "east10")).is_ok());
    }
}
