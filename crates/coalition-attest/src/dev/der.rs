//! The extension of a platform certificate that states its platform: a small tree of object ids and values, in DER.

use super::{DEVELOPMENT_FMSPC, PCE_SVN, PlatformOptions, SVN};

/// Object id of the extension.
pub(super) const SGX_EXTENSION: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];

/// That id as DER contents: every id inside the extension starts with these bytes.
const PREFIX: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;

/// The extension of the development platform.
pub(super) fn pck(platform: PlatformOptions) -> Vec<u8> {
    let mut tcb: Vec<Vec<u8>> = (1..=16).map(|n| entry(&[2, n], &value(INTEGER, &[SVN]))).collect();
    tcb.push(entry(&[2, 17], &value(INTEGER, &[PCE_SVN])));
    tcb.push(entry(&[2, 18], &value(OCTETS, &[SVN; 16])));
    let flags = [(1, platform.dynamic_platform), (2, platform.cached_keys), (3, platform.smt)]
        .map(|(n, set)| entry(&[7, n], &value(BOOLEAN, &[if set { 0xff } else { 0 }])));
    sequence(&[
        entry(&[1], &value(OCTETS, b"DEVELOPMENT PPID")),
        entry(&[2], &sequence(&tcb)),
        entry(&[3], &value(OCTETS, &[0, 0])),
        entry(&[4], &value(OCTETS, &DEVELOPMENT_FMSPC)),
        entry(&[5], &value(ENUMERATED, &[1])),
        entry(&[6], &value(OCTETS, b"DEVELOPMENT INST")),
        entry(&[7], &sequence(&flags)),
    ])
}

fn entry(below: &[u8], contents: &[u8]) -> Vec<u8> {
    let id = value(OBJECT_ID, &[&PREFIX[..], below].concat());
    sequence(&[id, contents.to_vec()])
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    value(SEQUENCE, &parts.concat())
}

/// One value with its length in the shortest form; nothing here reaches 65,536 bytes.
fn value(tag: u8, contents: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(contents.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut out = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend(contents);
    out
}
