//! Who the credentials belong to, and what the account may have.

use coalition_cloud::one_line;
use serde_json::{Value, json};

use crate::action::Action;
use crate::client::Ec2;
use crate::error::AwsError;
use crate::form::Form;
use crate::xml::Element;

/// The quota "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", in vCPUs.
pub const STANDARD_VCPUS: &str = "L-1216C47A";

/// Whom AWS takes the credentials for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The account, twelve digits.
    pub account: String,
    /// The user or role.
    pub arn: String,
}

impl Ec2 {
    /// Whom the credentials belong to. Needs no permission.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn caller(&self) -> Result<Identity, AwsError> {
        let action = Action::GetCallerIdentity;
        let root = self.query(action, Form::of(action)).await?;
        read_identity(&root).map_err(|problem| AwsError::Garbled { action, problem })
    }

    /// The value of one of EC2's quotas in this region.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn quota(&self, code: &str) -> Result<u32, AwsError> {
        let action = Action::GetServiceQuota;
        let answer = self.json(action, &json!({ "ServiceCode": "ec2", "QuotaCode": code })).await?;
        read_quota(&answer).map_err(|problem| AwsError::Garbled { action, problem })
    }
}

/// The caller of an answer.
pub(crate) fn read_identity(root: &Element) -> Result<Identity, String> {
    let result = root.child("GetCallerIdentityResult").ok_or("it has no result")?;
    let text = |name: &str| one_line(result.text_at(&[name]).unwrap_or_default(), 200);
    Ok(Identity { account: text("Account"), arn: text("Arn") })
}

/// The value of an answer, rounded down.
pub(crate) fn read_quota(body: &[u8]) -> Result<u32, String> {
    let said: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let value = said.pointer("/Quota/Value").and_then(Value::as_number).ok_or("it has no value")?.to_string();
    let whole = value.split('.').next().unwrap_or_default();
    whole.parse().map_err(|_| format!("its value is {}", one_line(&value, 40)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_whole_numbers() {
        let read = |value: &str| read_quota(format!("{{\"Quota\":{{\"Value\":{value}}}}}").as_bytes());
        assert_eq!((read("32.0"), read("5"), read("0.9")), (Ok(32), Ok(5), Ok(0)));
        for wrong in ["-1.0", "1e99", "\"5\"", "null"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
