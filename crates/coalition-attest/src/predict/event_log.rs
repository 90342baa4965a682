//! The log that firmware and kernel keep of what they extended the run-time registers with (in a guest: the ACPI table `CCEL`, and
//! the file `/sys/firmware/acpi/tables/data/CCEL`). Nobody signs it: it is worth what its replay explains.

use thiserror::Error;

use super::extend;
use crate::measurement::{REGISTER_BYTES, Register, Rtmr};

/// Largest log looked at. Firmware keeps 64 KiB to 256 KiB for it.
const MAX_LOG: usize = 4 << 20;
const MAX_ALGORITHMS: u32 = 8;
const SHA384: u16 = 0x000c;
const NO_ACTION: u32 = 3;

/// Why bytes are no event log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventLogError {
    /// No firmware writes so much.
    #[error("the event log has {0} bytes, more than {MAX_LOG}")]
    TooLong(usize),
    /// It does not begin as such logs do.
    #[error("the event log does not begin with a crypto-agile header (`Spec ID Event03`)")]
    NoHeader,
    /// It has no digests for these registers.
    #[error("the event log has no SHA-384 digests, which the registers are extended with")]
    NoSha384,
    /// An event of it is cut short.
    #[error("event {event} of the log is malformed: {reason}")]
    Malformed {
        /// Which, from 0.
        event: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Registers that a log does not explain.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the event log does not explain {register}: it replays to {replayed}, the quote says {quoted}")]
pub struct Unexplained {
    /// Which register.
    pub register: Register,
    /// What the log comes to.
    pub replayed: Rtmr,
    /// What was quoted.
    pub quoted: Rtmr,
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Into which run-time register, 0 to 3; `None` for a remark.
    pub rtmr: Option<u8>,
    /// What kind, by TCG's number, e.g. 0x80000003 for an application that the firmware starts.
    pub kind: u32,
    /// What the register was extended with.
    pub digest: [u8; REGISTER_BYTES],
    /// What the writer of the log says that this was. Only for some kinds it is what the digest is of.
    pub data: Vec<u8>,
}

impl Event {
    /// TCG's name of its kind.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        match self.kind {
            NO_ACTION => "EV_NO_ACTION",
            0x1 => "EV_POST_CODE",
            0x4 => "EV_SEPARATOR",
            0x5 => "EV_ACTION",
            0x6 => "EV_EVENT_TAG",
            0x8 => "EV_S_CRTM_VERSION",
            0xa => "EV_PLATFORM_CONFIG_FLAGS",
            0xd => "EV_IPL",
            0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
            0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
            0x8000_0003 => "EV_EFI_BOOT_SERVICES_APPLICATION",
            0x8000_0006 => "EV_EFI_GPT_EVENT",
            0x8000_0007 => "EV_EFI_ACTION",
            0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
            0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
            0x8000_000a => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
            0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
            0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
            0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
            _ => "other",
        }
    }

    /// Its data where that is printable text, in UTF-8 or UTF-16.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let trimmed = |text: String| {
            let text = text.trim_end_matches('\0').to_owned();
            (!text.is_empty() && text.chars().all(|c| !c.is_control())).then_some(text)
        };
        let wide = self.data.len().is_multiple_of(2) && self.data.get(1) == Some(&0);
        if wide {
            let units: Vec<u16> =
                self.data.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            return String::from_utf16(&units).ok().and_then(trimmed);
        }
        String::from_utf8(self.data.clone()).ok().and_then(trimmed)
    }
}

/// An event log, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Event>,
}

impl EventLog {
    /// Reads a log, with or without the unused rest of its table.
    ///
    /// # Errors
    /// [`EventLogError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_LOG {
            return Err(EventLogError::TooLong(bytes.len()));
        }
        let mut reader = Reader(bytes);
        let algorithms = header(&mut reader).ok_or(EventLogError::NoHeader)?;
        if !algorithms.iter().any(|(algorithm, bytes)| (*algorithm, *bytes) == (SHA384, REGISTER_BYTES)) {
            return Err(EventLogError::NoSha384);
        }
        let mut events = Vec::new();
        while !reader.is_over() {
            let read = event(&mut reader, &algorithms);
            events.push(read.map_err(|reason| EventLogError::Malformed { event: events.len(), reason })?);
        }
        Ok(Self { events })
    }

    /// What was measured, in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The run-time registers 0 to 3 of a guest that measured exactly this.
    #[must_use]
    pub fn replay(&self) -> [Rtmr; 4] {
        let mut registers = [Rtmr([0; REGISTER_BYTES]); 4];
        for event in &self.events {
            if let Some(register) = event.rtmr.and_then(|rtmr| registers.get_mut(usize::from(rtmr))) {
                extend(register, &event.digest);
            }
        }
        registers
    }

    /// Checks that the guest with these registers measured exactly this.
    ///
    /// # Errors
    /// [`Unexplained`] for the first register that comes out otherwise.
    pub fn explains(&self, quoted: &[Rtmr; 4]) -> Result<(), Unexplained> {
        const NAMES: [Register; 4] = [Register::Rtmr0, Register::Rtmr1, Register::Rtmr2, Register::Rtmr3];
        let all = self.replay().into_iter().zip(*quoted).zip(NAMES);
        let wrong = all.into_iter().find(|((replayed, quoted), _)| replayed != quoted);
        wrong.map_or(Ok(()), |((replayed, quoted), register)| Err(Unexplained { register, replayed, quoted }))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes)
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let count = self.u32().and_then(|count| usize::try_from(count).ok())?;
        self.bytes(count)
    }

    /// Nothing is left but the unused rest of the table: zeroes or ones.
    fn is_over(&self) -> bool {
        let unused = |byte: u8| self.0.iter().all(|b| *b == byte);
        unused(0) || unused(0xff)
    }
}

/// The first event, in the old form, names the digests that the others have: their algorithms and sizes.
fn header(reader: &mut Reader<'_>) -> Option<Vec<(u16, usize)>> {
    let (_, kind, _) = (reader.u32()?, reader.u32()?, reader.bytes(20)?);
    let mut inside = Reader(reader.sized()?);
    if kind != NO_ACTION || inside.bytes(16)? != b"Spec ID Event03\0" {
        return None;
    }
    inside.bytes(8)?;
    let count = inside.u32().filter(|count| (1..=MAX_ALGORITHMS).contains(count))?;
    (0..count).map(|_| Some((inside.u16()?, usize::from(inside.u16()?)))).collect()
}

fn event(reader: &mut Reader<'_>, algorithms: &[(u16, usize)]) -> Result<Event, &'static str> {
    let cut = "it is cut short";
    let (register, kind, digests) = (reader.u32().ok_or(cut)?, reader.u32().ok_or(cut)?, reader.u32().ok_or(cut)?);
    if digests > MAX_ALGORITHMS {
        return Err("it has more than 8 digests");
    }
    let mut digest = None;
    for _ in 0..digests {
        let algorithm = reader.u16().ok_or(cut)?;
        let known = algorithms.iter().find(|(known, _)| *known == algorithm);
        let (_, bytes) = known.ok_or("it has a digest of a kind that the header does not name")?;
        let bytes = reader.bytes(*bytes).ok_or(cut)?;
        if algorithm == SHA384 {
            digest = <[u8; REGISTER_BYTES]>::try_from(bytes).ok();
        }
    }
    let data = reader.sized().ok_or(cut)?.to_vec();
    // Register 0 of the log is the MRTD, which nobody extends.
    let rtmr = match (kind, register) {
        (NO_ACTION, _) => None,
        (_, 1..=4) => u8::try_from(register - 1).ok(),
        _ => return Err("it is of a register that a guest cannot extend"),
    };
    match (digest, rtmr) {
        (Some(digest), _) => Ok(Event { rtmr, kind, digest, data }),
        (None, None) => Ok(Event { rtmr, kind, digest: [0; REGISTER_BYTES], data }),
        (None, Some(_)) => Err("it has no SHA-384 digest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::sha384;

    fn log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = [0_u32, NO_ACTION].map(u32::to_le_bytes).concat();
        bytes.extend([0; 20]);
        let mut inside = b"Spec ID Event03\0".to_vec();
        inside.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        inside.extend(2_u32.to_le_bytes());
        for (algorithm, size) in [(0x0b_u16, 32_u16), (SHA384, 48)] {
            inside.extend(algorithm.to_le_bytes());
            inside.extend(size.to_le_bytes());
        }
        inside.push(0);
        bytes.extend(u32::try_from(inside.len()).unwrap().to_le_bytes());
        bytes.extend(inside);
        for (register, kind, data) in events {
            bytes.extend([*register, *kind, 2].map(u32::to_le_bytes).concat());
            bytes.extend(0x0b_u16.to_le_bytes());
            bytes.extend([1; 32]);
            bytes.extend(SHA384.to_le_bytes());
            bytes.extend(sha384(data));
            bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    const EVENTS: [(u32, u32, &[u8]); 5] = [
        (1, 0x8000_000b, b"hand-off"),
        (2, 0x8000_0007, b"Calling EFI Application from Boot Option"),
        (0, NO_ACTION, b"a remark"),
        (3, 6, b"c\0o\0n\0s\0\0\0"),
        (2, 4, &[0; 4]),
    ];

    #[test]
    fn a_log_replays_to_the_registers() {
        let bytes = log(&EVENTS);
        let parsed = EventLog::parse(&bytes).unwrap();
        assert_eq!(parsed.events().len(), 5);
        let mut by_hand = [Rtmr([0; REGISTER_BYTES]); 4];
        for (register, kind, data) in EVENTS {
            if kind != NO_ACTION {
                let at = register as usize - 1;
                by_hand[at] = Rtmr(sha384(&[&by_hand[at].0[..], &sha384(data)].concat()));
            }
        }
        assert_eq!(parsed.replay(), by_hand);
        parsed.explains(&by_hand).unwrap();
        let mut other = by_hand;
        other[2] = Rtmr([9; REGISTER_BYTES]);
        assert_eq!(parsed.explains(&other).unwrap_err().register, Register::Rtmr2);
        assert_eq!(parsed.events()[1].kind_name(), "EV_EFI_ACTION");
        assert_eq!(parsed.events()[3].text().unwrap(), "cons");
        assert_eq!(parsed.events()[4].text(), None);
        for rest in [0, 0xff] {
            assert_eq!(EventLog::parse(&[&bytes[..], &[rest; 99]].concat()).unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let bytes = log(&EVENTS);
        let whole: Vec<usize> = (0..=EVENTS.len()).map(|count| log(&EVENTS[..count]).len()).collect();
        for length in 0..bytes.len() {
            // Zeroes at the end may be the unused rest.
            let ends = whole.iter().any(|end| *end <= length && bytes[*end..length].iter().all(|byte| *byte == 0));
            assert_eq!(EventLog::parse(&bytes[..length]).is_ok(), ends, "cut at {length}");
        }
        let refused = |events: &[(u32, u32, &[u8])]| EventLog::parse(&log(events)).unwrap_err();
        assert!(matches!(refused(&[(5, 4, b"x")]), EventLogError::Malformed { event: 0, .. }));
        assert!(matches!(refused(&[(0, 4, b"x")]), EventLogError::Malformed { event: 0, .. }));
        assert_eq!(EventLog::parse(&vec![0; MAX_LOG + 1]).unwrap_err(), EventLogError::TooLong(MAX_LOG + 1));
    }

    /// A log of a real machine, and its registers in hex with commas between, if `COALITION_EVENT_LOG` and
    /// `COALITION_EVENT_LOG_RTMRS` name them.
    #[test]
    fn a_real_machines_log_explains_its_registers() {
        let (Ok(log), Ok(rtmrs)) = (std::env::var("COALITION_EVENT_LOG"), std::env::var("COALITION_EVENT_LOG_RTMRS"))
        else {
            println!("skipped: COALITION_EVENT_LOG and COALITION_EVENT_LOG_RTMRS name no log and its registers");
            return;
        };
        let replayed = EventLog::parse(&std::fs::read(log).unwrap()).unwrap().replay();
        for (register, (replayed, text)) in replayed.iter().zip(rtmrs.split(',')).enumerate() {
            assert_eq!(replayed.to_string(), text, "rtmr{register}");
        }
    }
}
