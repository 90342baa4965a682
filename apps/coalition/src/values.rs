//! Values as people type them: cores, memory, durations, moments. Pure.

use std::{fmt, str::FromStr, time::Duration};

use coalition_compute::{MIN_CPU_MILLICORES, MIN_RAM_MIB};

/// When something takes effect: now, at a wall-clock time (milliseconds since 1970), or at a tick of the Almanac.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effective {
    /// As soon as it is committed.
    Now,
    /// At this time.
    Time(u64),
    /// At this tick.
    Tick(coalition::AlmanacTick),
}

impl FromStr for Effective {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.strip_prefix("tick:") {
            _ if text == "now" => Ok(Self::Now),
            Some(tick) => {
                let tick = digits(tick).ok_or_else(|| ValueError::Tick(text.into()))?;
                Ok(Self::Tick(coalition::AlmanacTick(tick)))
            }
            None => text.parse().map(|Instant(ms)| Self::Time(ms)),
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("once"),
            Self::Time(ms) => f.write_str(&utc(*ms)),
            Self::Tick(tick) => write!(f, "tick {}", tick.0),
        }
    }
}

/// Why a value on the command line was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a number of cores.
    #[error("{0:?} is no number of cores: write 2, 0.5 or 500m (thousandths)")]
    Cpu(String),
    /// Not a size.
    #[error("{0:?} is no size: write 256MiB or 2GiB")]
    Ram(String),
    /// Not a duration.
    #[error("{0:?} is no duration: write 90s, 10m, 1h30m or 2d")]
    Duration(String),
    /// Not a moment.
    #[error("{0:?} is no time: write 2030-01-31T12:00:00Z or Unix seconds")]
    Instant(String),
    /// Neither.
    #[error("{0:?} is no time and no duration: write 10m, 2h, 2030-01-31T12:00:00Z or Unix seconds")]
    Since(String),
    /// Not a tick.
    #[error("{0:?} is no tick: write tick:N with N in digits")]
    Tick(String),
    /// Nothing asked for.
    #[error("{0:?} is nothing: ask for more than zero")]
    Zero(String),
    /// Less than any machine runs.
    #[error("{0:?} is too little: ask for {1} or more")]
    TooLittle(String, &'static str),
    /// More than can be expressed.
    #[error("{0:?} is too much")]
    TooLarge(String),
}

/// CPU in thousandths of a core, at least [`MIN_CPU_MILLICORES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuMillicores(pub u32);

impl FromStr for CpuMillicores {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Cpu(text.into());
        let millicores = match text.strip_suffix('m') {
            Some(thousandths) => digits(thousandths).ok_or_else(wrong)?,
            None => fixed_point(text, 3).ok_or_else(wrong)?,
        };
        at_least(text, narrow(text, millicores)?, MIN_CPU_MILLICORES, "0.01 cores").map(Self)
    }
}

impl fmt::Display for CpuMillicores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&cores(u64::from(self.0)))
    }
}

/// Thousandths of a core as a person writes cores: `1`, `0.5`, `1.25`.
#[must_use]
pub fn cores(millicores: u64) -> String {
    let fraction = format!("{:03}", millicores % 1_000);
    match fraction.trim_end_matches('0') {
        "" => (millicores / 1_000).to_string(),
        rest => format!("{}.{rest}", millicores / 1_000),
    }
}

/// Memory in MiB, at least [`MIN_RAM_MIB`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RamMib(pub u32);

/// Units of memory, in bytes. Decimal units are accepted because people write them; the result is rounded up to MiB.
const RAM_UNITS: [(&str, u64); 11] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
];

impl FromStr for RamMib {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        at_least(text, size_mib(text)?, MIN_RAM_MIB, "8MiB").map(Self)
    }
}

/// Disk in MiB, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskMib(pub u32);

impl FromStr for DiskMib {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        size_mib(text).map(Self)
    }
}

fn at_least(text: &str, given: u32, least: u32, shown: &'static str) -> Result<u32, ValueError> {
    if given < least { Err(ValueError::TooLittle(text.into(), shown)) } else { Ok(given) }
}

fn size_mib(text: &str) -> Result<u32, ValueError> {
    let wrong = || ValueError::Ram(text.into());
    let (number, unit_bytes) = RAM_UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)))
        .ok_or_else(wrong)?;
    let thousandths = fixed_point(number, 3).ok_or_else(wrong)?;
    let bytes = u128::from(thousandths) * u128::from(unit_bytes) / 1_000;
    let mib = u64::try_from(bytes.div_ceil(1 << 20)).map_err(|_| ValueError::TooLarge(text.into()))?;
    narrow(text, mib)
}

impl fmt::Display for RamMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&mib(u64::from(self.0)))
    }
}

/// MiB as a person writes memory: `256 MiB`, `2 GiB`, `1.5 GiB`.
#[must_use]
pub fn mib(mib: u64) -> String {
    match mib {
        0..1_024 => format!("{mib} MiB"),
        _ if mib.is_multiple_of(1_024) => format!("{} GiB", mib / 1_024),
        _ => format!("{}.{} GiB", mib / 1_024, mib % 1_024 * 10 / 1_024),
    }
}

/// A blake3, 64 hex digits.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse_hash(text: &str) -> Result<coalition::UniqueId, String> {
    let hash = coalition::parse_id(text).ok().filter(|_| text.len() == 64);
    hash.ok_or_else(|| format!("{text:?} is no blake3, which has 64 hex digits"))
}

/// A duration, at least one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationArg(pub u64);

impl DurationArg {
    /// The duration in milliseconds.
    #[must_use]
    pub const fn as_ms(self) -> u64 {
        self.0.saturating_mul(1_000)
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

const DURATION_UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl FromStr for DurationArg {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Duration(text.into());
        let too_large = || ValueError::TooLarge(text.into());
        let (mut rest, mut seconds, mut units) = (text, 0u64, DURATION_UNITS.iter());
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let count = digits(&rest[..end]).ok_or_else(wrong)?;
            let unit = rest[end..].chars().next().ok_or_else(wrong)?;
            // Units come once each, largest first: `5m1h` is more likely a slip than a wish.
            let (_, each) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let part = count.checked_mul(*each).ok_or_else(too_large)?;
            seconds = seconds.checked_add(part).ok_or_else(too_large)?;
            rest = &rest[end + unit.len_utf8()..];
        }
        match (text.is_empty(), seconds) {
            (true, _) => Err(wrong()),
            (_, 0) => Err(ValueError::Zero(text.into())),
            _ => Ok(Self(seconds)),
        }
    }
}

impl fmt::Display for DurationArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&duration(Duration::from_secs(self.0)))
    }
}

/// A duration as a person writes it, to the precision that matters at its size: `45 ms`, `2.3 s`, `10m`, `1h30m`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let (ms, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => match duration.subsec_millis() / 100 {
            0 => format!("{seconds} s"),
            tenths => format!("{seconds}.{tenths} s"),
        },
        _ => {
            let mut left = seconds;
            let mut out = String::new();
            for (unit, each) in DURATION_UNITS {
                if left >= each {
                    out.push_str(&format!("{}{unit}", left / each));
                    left %= each;
                }
            }
            out
        }
    }
}

/// A moment, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl FromStr for Instant {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let seconds = digits(text).or_else(|| rfc3339_seconds(text)).ok_or_else(|| ValueError::Instant(text.into()))?;
        seconds.checked_mul(1_000).map(Self).ok_or_else(|| ValueError::TooLarge(text.into()))
    }
}

/// A moment, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(DurationArg),
    /// Then.
    At(Instant),
}

impl Since {
    /// The moment in milliseconds since the Unix epoch, if it is `now_ms`.
    #[must_use]
    pub const fn at_ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(duration) => now_ms.saturating_sub(duration.as_ms()),
            Self::At(Instant(ms)) => ms,
        }
    }
}

impl FromStr for Since {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.parse() {
            Ok(duration) => Ok(Self::Ago(duration)),
            Err(_) => text.parse().map(Self::At).map_err(|_| ValueError::Since(text.into())),
        }
    }
}

/// Unix milliseconds as `2030-01-31 12:00:00 UTC`.
#[must_use]
pub fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// `YYYY-MM-DDTHH:MM:SSZ`, nothing else: other offsets invite mistakes.
fn rfc3339_seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix(['Z', 'z'])?.split_once(['T', 't', ' '])?;
    let [year, month, day] = parts(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = parts(time, ':', [2, 2, 2])?;
    let in_range =
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    if !in_range || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    Some(days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn parts(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut fields = text.split(separator);
    let mut out = [0; 3];
    for (value, width) in out.iter_mut().zip(widths) {
        let field = fields.next().filter(|field| field.len() == width)?;
        *value = digits(field)?;
    }
    fields.next().is_none().then_some(out)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date from 1970 on, counted month by month: dates here are few.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let years: u64 = (1970..year).map(|y| if is_leap(y) { 366 } else { 365 }).sum();
    years + (1..month).map(|m| days_in_month(year, m)).sum::<u64>() + day - 1
}

fn civil_from_days(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= if is_leap(year) { 366 } else { 365 } {
        days -= if is_leap(year) { 366 } else { 365 };
        year += 1;
        if year > 9999 {
            return (9999, 12, 31);
        }
    }
    let mut month = 1;
    while days >= days_in_month(year, month) {
        days -= days_in_month(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// `12.5` with at most `decimals` decimals, scaled to an integer: 12500 for 3.
fn fixed_point(text: &str, decimals: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.len() > decimals {
        return None;
    }
    let scale = 10u64.checked_pow(u32::try_from(decimals).ok()?)?;
    let shift = 10u64.checked_pow(u32::try_from(decimals - fraction.len()).ok()?)?;
    digits(whole)?.checked_mul(scale)?.checked_add(digits(fraction)?.checked_mul(shift)?)
}

fn narrow(text: &str, value: u64) -> Result<u32, ValueError> {
    match u32::try_from(value) {
        Ok(0) => Err(ValueError::Zero(text.into())),
        Ok(value) => Ok(value),
        Err(_) => Err(ValueError::TooLarge(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_as_people_write_them() {
        for (text, millicores) in [("1", 1_000), ("0.5", 500), ("500m", 500), ("2.25", 2_250), ("64", 64_000)] {
            assert_eq!(text.parse(), Ok(CpuMillicores(millicores)), "{text}");
        }
        for bad in ["", "x", "1.2345", "-1", "1e3", "m", ".5", "1 "] {
            assert_eq!(bad.parse::<CpuMillicores>(), Err(ValueError::Cpu(bad.into())));
        }
        assert_eq!("10m".parse(), Ok(CpuMillicores(10)));
        assert_eq!("9m".parse::<CpuMillicores>(), Err(ValueError::TooLittle("9m".into(), "0.01 cores")));
        assert_eq!("0".parse::<CpuMillicores>(), Err(ValueError::Zero("0".into())));
        assert_eq!(cores(1_250), "1.25");
        assert_eq!(cores(3_000), "3");
    }

    #[test]
    fn memory_as_people_write_it() {
        for (text, size) in
            [("256MiB", 256), ("2GiB", 2_048), ("1.5GiB", 1_536), ("1GB", 954), ("512M", 512), ("7169KiB", 8)]
        {
            assert_eq!(text.parse(), Ok(RamMib(size)), "{text}");
        }
        for bad in ["", "256", "MiB", "256MB/s", "-1GiB", "1.2345GiB"] {
            assert_eq!(bad.parse::<RamMib>(), Err(ValueError::Ram(bad.into())), "{bad}");
        }
        assert_eq!("7MiB".parse::<RamMib>(), Err(ValueError::TooLittle("7MiB".into(), "8MiB")));
        assert_eq!("1KiB".parse(), Ok(DiskMib(1)));
        assert_eq!("0MiB".parse::<DiskMib>(), Err(ValueError::Zero("0MiB".into())));
        assert_eq!("9999999TiB".parse::<RamMib>(), Err(ValueError::TooLarge("9999999TiB".into())));
        assert_eq!((mib(256), mib(2_048), mib(1_536)), ("256 MiB".into(), "2 GiB".into(), "1.5 GiB".into()));
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5_400), ("2d", 172_800), ("1d1h1m1s", 90_061)] {
            assert_eq!(text.parse(), Ok(DurationArg(seconds)), "{text}");
        }
        for bad in ["", "10", "m", "10x", "5m1h", "1h1h", "1.5h", "-5m", "10 m"] {
            assert_eq!(bad.parse::<DurationArg>(), Err(ValueError::Duration(bad.into())), "{bad}");
        }
        assert_eq!("0s".parse::<DurationArg>(), Err(ValueError::Zero("0s".into())));
        assert!(matches!("99999999999999999999d".parse::<DurationArg>(), Err(ValueError::Duration(_))));
        assert!(matches!("999999999999999999d".parse::<DurationArg>(), Err(ValueError::TooLarge(_))));
        let shown = [45, 2_340, 60_000, 5_400_000].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(shown, ["45 ms", "2.3 s", "1m", "1h30m"]);
    }

    #[test]
    fn moments_and_their_printed_form() {
        assert_eq!("1970-01-01T00:00:00Z".parse(), Ok(Instant(0)));
        assert_eq!("2000-02-29T12:34:56Z".parse(), Ok(Instant(951_827_696_000)));
        assert_eq!("951827696".parse(), Ok(Instant(951_827_696_000)));
        assert_eq!(utc(951_827_696_000), "2000-02-29 12:34:56 UTC");
        for bad in [
            "",
            "tomorrow",
            "2001-02-29T00:00:00Z",
            "2030-01-31T12:00:00",
            "2030-13-01T00:00:00Z",
            "2030-1-1T00:00:00Z",
        ] {
            assert!(bad.parse::<Instant>().is_err(), "{bad}");
        }
        assert_eq!(utc(u64::MAX), "9999-12-31 07:36:10 UTC".replace("07:36:10", &utc(u64::MAX)[11..19]));
    }
}
