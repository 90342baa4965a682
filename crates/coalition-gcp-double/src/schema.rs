//! The shape of an instance as `instances.insert` takes it: fields it does not know are refused, as Google does.

use serde_json::Value;

use crate::answer::{Refusal, refusal};

/// What a field holds.
enum Kind {
    Text,
    Bool,
    /// A number, or one written as text.
    Number,
    /// Text by name.
    Map,
    OneOf(&'static [&'static str]),
    List(&'static Kind),
    Object(&'static [(&'static str, Kind)]),
}

use Kind::{Bool, List, Map, Number, Object, OneOf, Text};

/// The part of `Instance` that a request may set. Fields that this list lacks are refused although Google may have them.
static INSTANCE: Kind = Object(&[
    ("name", Text),
    ("description", Text),
    ("hostname", Text),
    ("machineType", Text),
    ("minCpuPlatform", Text),
    ("zone", Text),
    ("labels", Map),
    ("canIpForward", Bool),
    ("deletionProtection", Bool),
    ("tags", Object(&[("items", List(&Text)), ("fingerprint", Text)])),
    ("metadata", Object(&[("items", List(&Object(&[("key", Text), ("value", Text)]))), ("fingerprint", Text)])),
    ("disks", List(&DISK)),
    ("networkInterfaces", List(&INTERFACE)),
    ("scheduling", SCHEDULING),
    (
        "shieldedInstanceConfig",
        Object(&[("enableSecureBoot", Bool), ("enableVtpm", Bool), ("enableIntegrityMonitoring", Bool)]),
    ),
    (
        "confidentialInstanceConfig",
        Object(&[
            ("enableConfidentialCompute", Bool),
            ("confidentialInstanceType", OneOf(&["SEV", "SEV_SNP", "TDX", "CONFIDENTIAL_INSTANCE_TYPE_UNSPECIFIED"])),
        ]),
    ),
    ("serviceAccounts", List(&Object(&[("email", Text), ("scopes", List(&Text))]))),
    (
        "reservationAffinity",
        Object(&[
            ("consumeReservationType", OneOf(&["ANY_RESERVATION", "NO_RESERVATION", "SPECIFIC_RESERVATION"])),
            ("key", Text),
            ("values", List(&Text)),
        ]),
    ),
]);

static DISK: Kind = Object(&[
    ("boot", Bool),
    ("autoDelete", Bool),
    ("deviceName", Text),
    ("type", OneOf(&["PERSISTENT", "SCRATCH"])),
    ("mode", OneOf(&["READ_WRITE", "READ_ONLY"])),
    ("interface", OneOf(&["SCSI", "NVME"])),
    ("source", Text),
    (
        "initializeParams",
        Object(&[
            ("diskName", Text),
            ("diskSizeGb", Number),
            ("diskType", Text),
            ("sourceImage", Text),
            ("labels", Map),
            ("description", Text),
            ("provisionedIops", Number),
            ("provisionedThroughput", Number),
            ("resourcePolicies", List(&Text)),
        ]),
    ),
]);

static INTERFACE: Kind = Object(&[
    ("network", Text),
    ("subnetwork", Text),
    ("networkIP", Text),
    ("nicType", OneOf(&["GVNIC", "VIRTIO_NET", "IDPF"])),
    ("stackType", OneOf(&["IPV4_ONLY", "IPV4_IPV6", "IPV6_ONLY"])),
    (
        "accessConfigs",
        List(&Object(&[
            ("type", OneOf(&["ONE_TO_ONE_NAT"])),
            ("name", Text),
            ("natIP", Text),
            ("networkTier", OneOf(&["PREMIUM", "STANDARD"])),
        ])),
    ),
]);

const SCHEDULING: Kind = Object(&[
    ("onHostMaintenance", OneOf(&["MIGRATE", "TERMINATE"])),
    ("automaticRestart", Bool),
    ("preemptible", Bool),
    ("provisioningModel", OneOf(&["STANDARD", "SPOT", "FLEX_START", "RESERVATION_BOUND"])),
    ("instanceTerminationAction", OneOf(&["DELETE", "STOP"])),
    ("maxRunDuration", Object(&[("seconds", Number), ("nanos", Number)])),
    ("terminationTime", Text),
]);

/// Whether it is an instance.
pub(crate) fn check(instance: &Value) -> Result<(), Refusal> {
    walk(instance, &INSTANCE, "resource")
}

fn walk(value: &Value, kind: &Kind, path: &str) -> Result<(), Refusal> {
    let wrong = |why: &str| Err(refusal(400, "invalid", &format!("Invalid JSON payload received. {path}: {why}")));
    match (kind, value) {
        (Text, Value::String(_)) | (Bool, Value::Bool(_)) | (Number, Value::Number(_)) => Ok(()),
        (Number, Value::String(text)) if text.parse::<i64>().is_ok() => Ok(()),
        (OneOf(words), Value::String(word)) if words.contains(&word.as_str()) => Ok(()),
        (Map, Value::Object(map)) if map.values().all(Value::is_string) => Ok(()),
        (List(kind), Value::Array(items)) => {
            items.iter().enumerate().try_for_each(|(n, item)| walk(item, kind, &format!("{path}[{n}]")))
        }
        (Object(fields), Value::Object(map)) => {
            map.iter().try_for_each(|(name, value)| match fields.iter().find(|(known, _)| known == name) {
                Some((_, kind)) => walk(value, kind, &format!("{path}.{name}")),
                None => wrong(&format!("Unknown name \"{name}\": Cannot find field.")),
            })
        }
        (_, other) => wrong(&format!("{other} is not of its type.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_and_wrong_types_are_refused() {
        check(&json!({ "name": "a", "scheduling": { "maxRunDuration": { "seconds": "900" } } })).unwrap();
        for wrong in [
            json!({ "nome": "a" }),
            json!({ "name": 1 }),
            json!({ "scheduling": { "maxRunDuration": "900s" } }),
            json!({ "disks": [{ "initializeParams": { "diskSizeGB": 1 } }] }),
            json!({ "confidentialInstanceConfig": { "confidentialInstanceType": "SNP" } }),
            json!([]),
        ] {
            assert!(check(&wrong).is_err(), "{wrong}");
        }
    }
}
