//! Money and rates as integers: no float reaches a machine, a hash or a signature.
//!
//! [`MicroUsd`] counts millionths of a dollar. [`RateQ64`] is dollars per hour in 64.64 fixed point. Both parse decimal
//! text without a float in between and use checked arithmetic only.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::serde_hex::text_or_binary;

/// Decimals a rate may be written with; more than enough to name every 64.64 fixed-point value (20 suffice).
const MAX_RATE_DECIMALS: usize = 36;
const MICRO_DECIMALS: usize = 6;
const MICROS_PER_USD: u64 = 1_000_000;

/// Why a text is no amount of money or no rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// Not digits with at most one decimal point.
    #[error("'{0}' is no amount in dollars: expected digits as in 0.05")]
    Syntax(String),
    /// More decimals than the unit has.
    #[error("'{text}' has {found} decimals, at most {max} are possible here")]
    Decimals {
        /// The text.
        text: String,
        /// Decimals it has.
        found: usize,
        /// Decimals possible.
        max: usize,
    },
    /// The value does not fit.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// An amount of money in millionths of a US dollar.
///
/// Prints as `$0.05` and parses with or without the `$`; serializes as `"0.05"` in human-readable formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MicroUsd(pub u64);

impl MicroUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount representable, about 18.4 trillion dollars.
    pub const MAX: Self = Self(u64::MAX);

    /// Whole dollars, or `None` when they do not fit.
    #[must_use]
    pub const fn from_usd(usd: u64) -> Option<Self> {
        match usd.checked_mul(MICROS_PER_USD) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// Sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// Difference, or `None` when `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// Product with a count, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_mul(self, count: u64) -> Option<Self> {
        match self.0.checked_mul(count) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// Plain decimal text without the `$`, at least two decimals.
    #[must_use]
    pub fn to_decimal(self) -> String {
        let micros = format!("{:06}", self.0 % MICROS_PER_USD);
        let significant = micros.trim_end_matches('0').len().max(2);
        format!("{}.{}", self.0 / MICROS_PER_USD, &micros[..significant])
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("${}", self.to_decimal()))
    }
}

impl FromStr for MicroUsd {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let decimal = Decimal::parse(text, MICRO_DECIMALS)?;
        let too_large = || MoneyError::TooLarge(shown(text));
        let scale = 10u64.pow(decimal.missing_decimals(MICRO_DECIMALS));
        let fraction = u64::try_from(decimal.fraction).map_err(|_| too_large())? * scale;
        decimal
            .whole
            .checked_mul(MICROS_PER_USD)
            .and_then(|micros| micros.checked_add(fraction))
            .map(Self)
            .ok_or_else(too_large)
    }
}

text_or_binary!(
    MicroUsd,
    u64,
    |amount: &MicroUsd| amount.0,
    MicroUsd,
    |amount: &MicroUsd| amount.to_decimal(),
    "an amount in dollars as text, as in \"0.05\""
);

/// A price in US dollars per hour (of one core, where cores are priced), with 64 fractional bits.
///
/// Parsing rounds down, by less than 2^-64 dollars, and costs round up, so an hour at `0.05` costs exactly `$0.05`: nobody
/// is charged for the binary representation. Prints the shortest decimal that parses back to the same value; serializes
/// as that text in human-readable formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RateQ64(pub u128);

impl RateQ64 {
    /// Free of charge.
    pub const ZERO: Self = Self(0);
    /// The largest rate representable.
    pub const MAX: Self = Self(u128::MAX);

    /// Whole dollars per hour.
    #[must_use]
    pub const fn from_usd_per_hour(usd: u64) -> Self {
        Self((usd as u128) << 64)
    }

    /// Sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// Difference, or `None` when `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// Product with a count (cores, say), or `None` when it does not fit.
    #[must_use]
    pub const fn checked_mul(self, count: u64) -> Option<Self> {
        match self.0.checked_mul(count as u128) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// What `core_ms` core-milliseconds cost at this rate per core-hour, rounded up to the next millionth of a dollar.
    ///
    /// `None` when the cost does not fit [`MicroUsd`].
    #[must_use]
    pub fn cost_of_ms(self, core_ms: u64) -> Option<MicroUsd> {
        // Micro-dollars are rate * 1e6 * core_ms / 3.6e6 / 2^64, that is rate * core_ms * 5 / 18 / 2^64. The product has
        // up to 195 bits, so whole and fractional dollars are carried apart.
        let core_ms = u128::from(core_ms);
        let whole = (self.0 >> 64).checked_mul(core_ms)?;
        let fraction = (self.0 & LOW_64).checked_mul(core_ms)?;
        let whole = whole.checked_add(fraction >> 64)?;
        let fraction = (fraction & LOW_64) * 5;
        let numerator = whole.checked_mul(5)?.checked_add(fraction >> 64)?;
        let exact = numerator % 18 == 0 && fraction & LOW_64 == 0;
        let micros = numerator / 18 + u128::from(!exact);
        u64::try_from(micros).ok().map(MicroUsd)
    }

    /// What `core_seconds` core-seconds cost at this rate per core-hour; see [`RateQ64::cost_of_ms`].
    #[must_use]
    pub fn cost_of(self, core_seconds: u64) -> Option<MicroUsd> {
        self.cost_of_ms(core_seconds.checked_mul(1000)?)
    }

    /// The fraction rounded up to `decimals` digits, and whether that carries into the whole dollars.
    fn digits_rounded_up(self, decimals: usize) -> (bool, Vec<u8>) {
        let mut rest = self.0 & LOW_64;
        let mut digits = Vec::with_capacity(decimals);
        for _ in 0..decimals {
            rest *= 10;
            digits.push(u8::try_from(rest >> 64).expect("a digit: the rest stays below 2^64"));
            rest &= LOW_64;
        }
        let mut carry = rest != 0;
        for digit in digits.iter_mut().rev() {
            if !carry {
                break;
            }
            carry = *digit == 9;
            *digit = if carry { 0 } else { *digit + 1 };
        }
        (carry, digits)
    }
}

const LOW_64: u128 = u64::MAX as u128;

impl fmt::Display for RateQ64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for decimals in 2..=20 {
            let (carry, digits) = self.digits_rounded_up(decimals);
            let whole = (self.0 >> 64) + u128::from(carry);
            let fraction: String = digits.iter().map(|d| char::from(b'0' + d)).collect();
            let text = format!("{whole}.{fraction}");
            if text.parse() == Ok(*self) {
                return f.pad(&text);
            }
        }
        unreachable!("20 decimals tell any two values apart: 10^-20 is finer than half of 2^-64")
    }
}

impl FromStr for RateQ64 {
    type Err = MoneyError;

    /// Takes up to 36 decimals and rounds down to the next representable value.
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let decimal = Decimal::parse(text, MAX_RATE_DECIMALS)?;
        let denominator = 10u128.pow(decimal.decimals);
        let (mut rest, mut bits) = (decimal.fraction, 0u128);
        // Long division, one binary digit at a time: `rest` stays below 10^36, so doubling it cannot overflow.
        for _ in 0..64 {
            rest *= 2;
            bits <<= 1;
            if rest >= denominator {
                rest -= denominator;
                bits |= 1;
            }
        }
        (u128::from(decimal.whole) << 64).checked_add(bits).map(Self).ok_or_else(|| MoneyError::TooLarge(shown(text)))
    }
}

text_or_binary!(
    RateQ64,
    u128,
    |rate: &RateQ64| rate.0,
    RateQ64,
    |rate: &RateQ64| rate.to_string(),
    "a rate in dollars per hour as text, as in \"0.05\""
);

/// Digits before and after the decimal point.
struct Decimal {
    whole: u64,
    fraction: u128,
    decimals: u32,
}

impl Decimal {
    /// Parses `12`, `12.5` or `$0.05`; no sign, no exponent, no separators, digits on both sides of a point.
    fn parse(text: &str, max_decimals: usize) -> Result<Self, MoneyError> {
        let syntax = || MoneyError::Syntax(shown(text));
        let digits = text.strip_prefix('$').unwrap_or(text);
        let (whole, fraction) = match digits.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(syntax()),
            None => (digits, ""),
        };
        let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return Err(syntax());
        }
        if fraction.len() > max_decimals {
            return Err(MoneyError::Decimals { text: shown(text), found: fraction.len(), max: max_decimals });
        }
        Ok(Self {
            whole: whole.parse().map_err(|_| MoneyError::TooLarge(shown(text)))?,
            fraction: fraction.bytes().fold(0, |n, b| n * 10 + u128::from(b - b'0')),
            decimals: u32::try_from(fraction.len()).expect("checked to be at most 36 above"),
        })
    }

    fn missing_decimals(&self, wanted: usize) -> u32 {
        u32::try_from(wanted).unwrap_or(u32::MAX).saturating_sub(self.decimals)
    }
}

/// The text as an error may repeat it: cut, so that a message stays readable whatever was passed in.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}
