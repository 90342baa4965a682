//! Reading a policy as configs publish it: its canonical bytes, then the certificate of a development root.

use std::collections::{BTreeMap, BTreeSet};

use super::{BindingRule, PlatformFlag, Policy, PolicyError, TcbStatus, VERSION};
use crate::measurement::{REGISTER_BYTES, Register, RegisterValue};
use crate::root::TrustRoot;

const STATUSES: [TcbStatus; 8] = [
    TcbStatus::UpToDate,
    TcbStatus::SWHardeningNeeded,
    TcbStatus::ConfigurationNeeded,
    TcbStatus::ConfigurationAndSWHardeningNeeded,
    TcbStatus::OutOfDate,
    TcbStatus::OutOfDateConfigurationNeeded,
    TcbStatus::TDRelaunchAdvised,
    TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
];

/// Parses a document. Only the encoding that [`Policy::to_document`] writes is accepted: it is written again and compared.
pub(super) fn parse(bytes: &[u8]) -> Result<Policy, PolicyError> {
    let mut reader = Reader(bytes);
    if reader.byte("version")? != VERSION {
        return Err(PolicyError::Document("version"));
    }
    let kind = reader.byte("root kind")?;
    let id: [u8; 32] = reader.array("root id")?;
    let registers = registers(&mut reader)?;
    let tcb = each(&mut reader, "accepted statuses", |reader| {
        let number = reader.byte("accepted statuses")?;
        let known = STATUSES.into_iter().find(|status| *status as u8 == number);
        known.ok_or(PolicyError::Document("accepted statuses"))
    })?;
    let bits = reader.byte("allowed flags")?;
    let allow = PlatformFlag::ALL.into_iter().filter(|flag| bits & *flag as u8 != 0).collect();
    let reject_advisories = each(&mut reader, "rejected advisories", |reader| {
        let length = reader.byte("rejected advisories")?;
        let name = std::str::from_utf8(reader.take("rejected advisories", usize::from(length))?);
        name.map(str::to_owned).map_err(|_| PolicyError::Document("rejected advisories"))
    })?;
    let binding = match reader.byte("binding")? {
        1 => BindingRule::Required,
        2 => BindingRule::Unbound,
        _ => return Err(PolicyError::Document("binding")),
    };
    let max_quote_age_s = reader.optional("max_quote_age_s")?;
    let max_collateral_age_s = reader.optional("max_collateral_age_s")?;
    let min_tcb_evaluation = reader.optional("min_tcb_evaluation")?.map(u32::try_from).transpose();
    let min_tcb_evaluation = min_tcb_evaluation.map_err(|_| PolicyError::Document("min_tcb_evaluation"))?;
    let root = match kind {
        1 => TrustRoot::Intel,
        2 => TrustRoot::development(reader.0)?,
        _ => return Err(PolicyError::Document("root kind")),
    };
    if root.id().as_bytes() != &id {
        return Err(PolicyError::Document("root id"));
    }
    let policy = Policy {
        root,
        registers,
        tcb,
        allow,
        reject_advisories,
        binding,
        max_quote_age_s,
        max_collateral_age_s,
        min_tcb_evaluation,
    }
    .validated()?;
    if policy.to_document() != bytes {
        return Err(PolicyError::Document("encoding, of which there is one"));
    }
    Ok(policy)
}

fn registers(reader: &mut Reader<'_>) -> Result<BTreeMap<Register, BTreeSet<RegisterValue>>, PolicyError> {
    let pairs: BTreeSet<_> = each(reader, "registers", |reader| {
        let number = reader.byte("registers")?;
        let register = Register::ALL.into_iter().find(|register| register.number() == number);
        let register = register.ok_or(PolicyError::Document("registers"))?;
        let values = each(reader, "registers", |reader| {
            reader.array::<REGISTER_BYTES>("registers").map(RegisterValue::from_bytes)
        })?;
        Ok((register, values))
    })?;
    Ok(pairs.into_iter().collect())
}

/// A list behind its length in one byte. At most 255 elements, so nothing large is allocated before it is read.
fn each<T: Ord>(
    reader: &mut Reader<'_>,
    field: &'static str,
    mut one: impl FnMut(&mut Reader<'_>) -> Result<T, PolicyError>,
) -> Result<BTreeSet<T>, PolicyError> {
    let count = reader.byte(field)?;
    (0..count).map(|_| one(reader)).collect()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], PolicyError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(PolicyError::Document(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], PolicyError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, PolicyError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn optional(&mut self, field: &'static str) -> Result<Option<u64>, PolicyError> {
        let present = self.byte(field)?;
        let value = u64::from_be_bytes(self.array(field)?);
        match present {
            0 => Ok(None),
            1 => Ok(Some(value)),
            _ => Err(PolicyError::Document(field)),
        }
    }
}
