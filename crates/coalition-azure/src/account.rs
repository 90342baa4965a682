//! Who the credentials belong to, and what the subscription may have.

use coalition_cloud::{ErrorKind, Quota, one_line};
use serde::Deserialize;

use crate::action::Action;
use crate::client::{Ask, Azure};
use crate::error::AzureError;
use crate::hosts::MAX_PAGES;
use crate::machine::Page;

const USAGE_API: &str = "2025-04-01";
const SUBSCRIPTION_API: &str = "2022-12-01";
const GROUP_API: &str = "2021-04-01";
/// What the limit of all sizes together is called.
const ALL: &str = "cores";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    display_name: String,
    state: String,
}

/// One limit of the region.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    name: UsageName,
    current_value: u32,
    limit: u32,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct UsageName {
    value: String,
}

pub(crate) fn read_subscription(bytes: &[u8]) -> Result<(String, String), String> {
    let Document { display_name, state } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((one_line(&display_name, 80), one_line(&state, 20)))
}

/// A page of limits that can be read, and the next page. Some are larger than any number of processors.
pub(crate) fn read_usages(bytes: &[u8]) -> Result<(Vec<Usage>, Option<String>), String> {
    let Page { value, next } = serde_json::from_slice::<Page<serde_json::Value>>(bytes).map_err(|e| e.to_string())?;
    Ok((value.into_iter().filter_map(|usage| serde_json::from_value(usage).ok()).collect(), next))
}

/// The least of the limits that count, as far as they are known.
fn quota_of(usages: &[Usage], family: Option<&str>, region: &str) -> Quota {
    let find = |name: &str| usages.iter().find(|usage| usage.name.value.eq_ignore_ascii_case(name));
    let told = |name: &str| match find(name) {
        Some(usage) => format!("{name}: {} vCPUs, {} in use", usage.limit, usage.current_value),
        None => format!("{name}: unknown"),
    };
    let names: Vec<&str> = std::iter::once(ALL).chain(family).collect();
    // The tightest: what the limit leaves counts, and what is in use counts as used by us.
    let vcpus = names.iter().filter_map(|name| find(name)).map(|usage| usage.limit).min();
    let told: Vec<String> = names.iter().map(|name| told(name)).collect();
    Quota { vcpus, text: format!("the subscription's quota in {region} is {}", told.join("; ")) }
}

impl Azure {
    /// The subscription, the resource group and the identity.
    pub(crate) async fn look_at_account(&self) -> Result<String, AzureError> {
        let action = Action::GetSubscription;
        let who = self.login().who().map_err(|error| AzureError::NoToken {
            action,
            kind: error.kind,
            problem: error.problem,
        })?;
        let answer = self.ask(&Ask::get(action, self.at(&format!("?api-version={SUBSCRIPTION_API}")))).await?;
        let (name, state) =
            read_subscription(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
        if !["Enabled", "Warned", "PastDue"].contains(&state.as_str()) {
            let (kind, code, status) = (ErrorKind::Auth, "SubscriptionNotEnabled".to_owned(), 200);
            let message = format!("the subscription {name:?} is {state}");
            return Err(AzureError::Refused { action, kind, code, message, status, retry_after: None });
        }
        self.ask(&Ask::get(Action::GetGroup, self.in_group(&format!("?api-version={GROUP_API}")))).await?;
        let (id, group) = (&self.setup().subscription, &self.setup().resource_group);
        Ok(format!("subscription {name:?} ({id}), {state}; resource group {group}; as {who}"))
    }

    pub(crate) async fn look_at_quota(&self) -> Result<Quota, AzureError> {
        let action = Action::ListUsages;
        let region = &self.setup().region;
        let path = format!("/providers/Microsoft.Compute/locations/{region}/usages?api-version={USAGE_API}");
        let mut url = self.at(&path);
        let mut usages = Vec::new();
        for _ in 0..MAX_PAGES {
            let answer = self.ask(&Ask::get(action, url)).await?;
            let (page, next) = read_usages(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
            usages.extend(page);
            match next {
                Some(next) => url = self.next_page(action, &next)?,
                None => return Ok(quota_of(&usages, self.setup().quota_family.as_deref(), region)),
            }
        }
        Err(AzureError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_counts() {
        let page = br#"{"value":[
            {"unit":"Count","currentValue":4,"limit":20,"name":{"value":"cores","localizedValue":"Total Regional vCPUs"}},
            {"currentValue":0,"limit":8,"name":{"value":"standardDCASv5Family"}},
            {"currentValue":0,"limit":-1,"name":{"value":"odd"}}]}"#;
        let (usages, next) = read_usages(page).unwrap();
        assert_eq!((usages.len(), next), (2, None));
        assert_eq!(quota_of(&usages, None, "r").vcpus, Some(20));
        let both = quota_of(&usages, Some("standarddcasv5family"), "r");
        assert_eq!(both.vcpus, Some(8));
        assert!(both.text.contains("20 vCPUs, 4 in use") && both.text.contains("8 vCPUs, 0 in use"), "{}", both.text);
        assert!(quota_of(&usages, Some("other"), "r").text.contains("other: unknown"));
        assert_eq!(quota_of(&[], None, "r").vcpus, None);
        assert!(read_usages(b"{}").is_err() && read_subscription(b"{}").is_err());
    }
}
