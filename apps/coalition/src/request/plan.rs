//! Whether a request makes sense against the market as it stands, before anything is sent. Pure.
//!
//! The committee decides; this only spares a person from waiting for what cannot happen, and says what would.

use coalition::{AlmanacTick, Mrtd, RateQ64};
use coalition_compute::{At, CardView, ComputeParams, FreeOffer, Region};

use crate::{
    error::{CliError, Kind, Result},
    values,
};

/// Largest difference between this machine's clock and the committee's that is worked with, in milliseconds.
pub const MAX_CLOCK_SKEW_MS: u64 = 60_000;

/// Disk asked for without `--disk`, in MiB: so much beside the unpacked image, and no less than this.
const DISK_BESIDE_MIB: u64 = 512;
const LEAST_DISK_MIB: u64 = 1_024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Thousandths of a core.
    pub cpu_millicores: u32,
    /// MiB.
    pub ram_mib: u32,
    /// Where, or anywhere.
    pub region: Option<Region>,
    /// Seconds from the grant.
    pub duration_s: u64,
    /// USD per core-hour with memory included.
    pub max_rate: RateQ64,
    /// Whether it must be a machine inside TDX, at an attested provider.
    pub tdx: bool,
    /// The measurement the machine must show; only with `tdx`.
    pub mrtd: Option<Mrtd>,
    /// When to give up.
    pub until: Until,
    /// Whether to send it although no offer fits now.
    pub anyway: bool,
}

/// When a request without a grant ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// This many milliseconds after it was sent.
    After(u64),
    /// At this moment, Unix milliseconds.
    At(u64),
}

/// The market as it stands.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// Every card.
    pub cards: &'a [CardView],
    /// The module's parameters.
    pub params: &'a ComputeParams,
    /// Committee time.
    pub now: At,
}

/// A request that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Seconds, as the request carries them.
    pub duration_s: u32,
    /// The tick at which it expires without a grant.
    pub deadline: AlmanacTick,
    /// Milliseconds until then, at the clock's cadence.
    pub wait_ms: u64,
    /// The cheapest rate of an offer that fits now, if one does.
    pub expected_rate: Option<RateQ64>,
    /// Something the requester should know before waiting.
    pub note: Option<String>,
}

/// Checks a request against the market.
///
/// # Errors
/// [`Kind::Input`] for what no market would take (deadline in the past, longer than the module grants), [`Kind::Refused`]
/// for what this one does not offer now (no provider, region nobody serves, too large, too cheap).
pub fn check(ask: &Ask, market: &Snapshot<'_>, local_ms: u64) -> Result<Checked> {
    check_clock(local_ms, market.now.time_ms)?;
    let duration_s = check_duration(ask.duration_s, market.params)?;
    let wait_ms = wait_ms(ask.until, market.now.time_ms)?;
    let ticks = market.params.ticks_for_ms(wait_ms);
    if ticks > u64::from(market.params.max_deadline_ticks) {
        let longest = market.params.ms_for_ticks(u64::from(market.params.max_deadline_ticks));
        let message = format!("a request waits at most {} in this market", shown_ms(longest));
        return Err(CliError::input("deadline_too_far", message).hint("choose a shorter --wait"));
    }
    let (expected_rate, note) = match offer(ask, market) {
        Ok(found) => found,
        Err(_) if ask.anyway => (None, Some("no offer fits now; waiting for one".to_owned())),
        Err(refused) => return Err(refused.and_hint("with --anyway it is sent all the same, to wait for an offer")),
    };
    let deadline = AlmanacTick(market.now.tick.saturating_add(ticks));
    Ok(Checked { duration_s, deadline, wait_ms, expected_rate, note })
}

/// The disk to ask for, in MiB, for an image that takes so many bytes of it: what was said, or else enough to work with.
///
/// # Errors
/// [`Kind::Input`] when the image does not fit in what was said, or in any disk.
pub fn disk_mib(said: Option<u32>, image_bytes: u64) -> Result<u32> {
    let image = image_bytes.div_ceil(1 << 20);
    let wanted = said.map_or_else(|| (image.saturating_add(DISK_BESIDE_MIB)).max(LEAST_DISK_MIB), u64::from);
    match u32::try_from(wanted) {
        Ok(wanted) if u64::from(wanted) >= image => Ok(wanted),
        _ => {
            let message = format!(
                "the image unpacks to {}, which {} of disk cannot hold",
                values::mib(image),
                values::mib(wanted)
            );
            Err(CliError::input("disk_too_small", message)
                .hint(format!("ask for more, and for what the workload writes: --disk {}MiB", image + DISK_BESIDE_MIB)))
        }
    }
}

/// Checks that this machine's clock and the committee's agree.
///
/// # Errors
/// [`Kind::Input`] naming both times.
pub fn check_clock(local_ms: u64, committee_ms: u64) -> Result<()> {
    let skew = local_ms.abs_diff(committee_ms);
    if skew <= MAX_CLOCK_SKEW_MS {
        return Ok(());
    }
    let direction = if local_ms > committee_ms { "ahead of" } else { "behind" };
    let message = format!(
        "this machine's clock says {}, the committee's {}: it is {} {direction} it, and deadlines would be wrong",
        values::utc(local_ms),
        values::utc(committee_ms),
        shown_ms(skew)
    );
    Err(CliError::input("clock_off", message)
        .hint("set the clock (`timedatectl set-ntp true`), then try again; compare with `date -u`"))
}

fn check_duration(duration_s: u64, params: &ComputeParams) -> Result<u32> {
    let longest = params.max_duration_sec;
    u32::try_from(duration_s).ok().filter(|seconds| *seconds <= longest).ok_or_else(|| {
        let message = format!(
            "--for asks for {}, this market grants at most {}",
            shown_ms(duration_s.saturating_mul(1_000)),
            shown_ms(u64::from(longest) * 1_000)
        );
        CliError::input("duration_too_long", message).hint("ask for less and request again before it ends")
    })
}

fn wait_ms(until: Until, now_ms: u64) -> Result<u64> {
    match until {
        Until::After(ms) => Ok(ms),
        Until::At(moment) if moment > now_ms => Ok(moment - now_ms),
        Until::At(moment) => {
            let message = format!(
                "the deadline {} has passed: the committee's clock says {}",
                values::utc(moment),
                values::utc(now_ms)
            );
            Err(CliError::input("deadline_passed", message).hint("give a later --deadline, or --wait 30s"))
        }
    }
}

/// The cheapest rate that fits, or why none does: the first filter that leaves nothing is the answer.
fn offer(ask: &Ask, market: &Snapshot<'_>) -> Result<(Option<RateQ64>, Option<String>)> {
    let refused = |code: &str, message: String| CliError::new(Kind::Refused, code, message);
    // Where the market asks for attestation of everybody, a card without one that counts wins nothing.
    let required = market.params.attestation.as_ref().is_some_and(|rule| rule.required);
    let young = market.cards.iter().filter(|card| !card.stale && (!required || card.attestation.is_some()));
    let fresh: Vec<&FreeOffer> = young.flat_map(|card| &card.free).collect();
    if fresh.is_empty() {
        let message = match market.cards.len() {
            0 => "there is no provider in this market".to_owned(),
            stale => format!("all {stale} providers of this market have gone silent"),
        };
        return Err(
            refused("no_providers", message).hint("see `coalition market`; on this machine, `coalition status`")
        );
    }
    let in_region: Vec<&FreeOffer> = fresh.iter().copied().filter(|offer| serves(offer, ask.region.as_ref())).collect();
    if in_region.is_empty() {
        let region = ask.region.as_ref().map_or("anywhere", Region::as_str);
        let message = format!("no provider serves region {region}; there is {}", regions(&fresh).join(", "));
        return Err(refused("region_not_served", message).hint("choose one of these with --region, or leave it out"));
    }
    let in_region = in_posture(ask, market, &in_region)?;
    let fitting: Vec<&FreeOffer> = in_region.iter().copied().filter(|offer| can_carry(offer, ask)).collect();
    if fitting.is_empty() {
        return Err(refused("too_large", too_large(ask, &in_region)).hint("ask for less with --cpu and --ram"));
    }
    let rate = |offer: &FreeOffer| offer.offer.declared_rates.effective_core_hour(ask.cpu_millicores, ask.ram_mib);
    let cheapest = fitting.iter().filter_map(|offer| rate(offer)).min();
    let Some(cheapest) = cheapest.filter(|cheapest| *cheapest <= ask.max_rate) else {
        let cheapest = cheapest.map_or_else(|| "beyond measure".to_owned(), dollars);
        let message = format!(
            "--max-rate {} is too low: the cheapest offer for {} cores and {} costs {cheapest} per core-hour",
            dollars(ask.max_rate),
            values::cores(u64::from(ask.cpu_millicores)),
            values::mib(u64::from(ask.ram_mib)),
        );
        return Err(refused("price_too_low", message)
            .hint(format!("raise it: --max-rate {}", cheapest.trim_start_matches('$'))));
    };
    let affordable = |offer: &&&FreeOffer| rate(offer).is_some_and(|rate| rate <= ask.max_rate);
    let is_free = fitting.iter().filter(affordable).any(|offer| has_room(offer, ask));
    let note = (!is_free).then(|| "every offer that fits is full now; waiting for room".to_owned());
    Ok((Some(cheapest), note))
}

/// The offers that are what TDX is asked of, if it is.
fn in_posture<'a>(ask: &Ask, market: &Snapshot<'_>, offers: &[&'a FreeOffer]) -> Result<Vec<&'a FreeOffer>> {
    if !ask.tdx {
        return Ok(offers.to_vec());
    }
    let refused = |code: &str, message: &str| CliError::new(Kind::Refused, code, message.to_owned());
    if market.params.attestation.is_none() {
        let message = "this market verifies no attestation, so nothing here could prove TDX";
        return Err(refused("no_attestation", message).hint("leave out --tdx and --mrtd, or use another coalition"));
    }
    // A provider that claims TDX is attested, or its card would not be here; one whose proof ended wins nothing.
    let proven = market.cards.iter().filter(|card| card.attestation.is_some()).flat_map(|card| &card.card.offers);
    let proven: Vec<_> = proven.filter(|offer| offer.capabilities.tdx_capable).collect();
    let tdx: Vec<_> = offers.iter().copied().filter(|free| proven.contains(&&free.offer)).collect();
    if tdx.is_empty() {
        return Err(refused("not_attested", "no provider there offers machines inside TDX and is attested now")
            .hint("see POSTURE in `coalition market`"));
    }
    let Some(mrtd) = ask.mrtd else { return Ok(tdx) };
    let pinned: Vec<_> = tdx.iter().copied().filter(|free| free.offer.capabilities.mrtds.contains(&mrtd)).collect();
    if pinned.is_empty() {
        return Err(refused("mrtd_not_offered", "no attested provider there offers machines with that measurement")
            .hint("`coalition market --json` lists the measurements"));
    }
    Ok(pinned)
}

fn serves(offer: &FreeOffer, region: Option<&Region>) -> bool {
    region.is_none_or(|region| offer.offer.capabilities.regions.contains(region))
}

fn can_carry(offer: &FreeOffer, ask: &Ask) -> bool {
    let capabilities = &offer.offer.capabilities;
    capabilities.instance_cpu_millicores.min(capabilities.max_cpu_millicores) >= ask.cpu_millicores
        && capabilities.instance_ram_mib.min(capabilities.max_ram_mib) >= ask.ram_mib
        && capabilities.max_instances > 0
}

fn has_room(offer: &FreeOffer, ask: &Ask) -> bool {
    offer.cpu_millicores >= u64::from(ask.cpu_millicores)
        && offer.ram_mib >= u64::from(ask.ram_mib)
        && offer.instances > 0
}

fn regions(offers: &[&FreeOffer]) -> Vec<String> {
    let all = offers.iter().flat_map(|offer| &offer.offer.capabilities.regions);
    let distinct: std::collections::BTreeSet<_> = all.map(Region::to_string).collect();
    distinct.into_iter().collect()
}

fn too_large(ask: &Ask, offers: &[&FreeOffer]) -> String {
    let largest = offers.iter().map(|offer| {
        let capabilities = &offer.offer.capabilities;
        let cpu = capabilities.instance_cpu_millicores.min(capabilities.max_cpu_millicores);
        (cpu, capabilities.instance_ram_mib.min(capabilities.max_ram_mib))
    });
    let (cpu, ram) = largest.max().unwrap_or_default();
    format!(
        "no provider there has {} cores and {} in one machine; the largest has {} cores and {}",
        values::cores(u64::from(ask.cpu_millicores)),
        values::mib(u64::from(ask.ram_mib)),
        values::cores(u64::from(cpu)),
        values::mib(u64::from(ram)),
    )
}

fn shown_ms(ms: u64) -> String {
    values::duration(std::time::Duration::from_secs(ms / 1_000))
}

/// A rate rounded up to a millionth of a dollar, for people: `$0.024`. Rounded up, so that it works as a limit.
#[must_use]
pub fn dollars(rate: RateQ64) -> String {
    let micros = (rate.0 >> 64)
        .saturating_mul(1_000_000)
        .saturating_add(((rate.0 & u128::from(u64::MAX)) * 1_000_000).div_ceil(1 << 64));
    let fraction = format!("{:06}", micros % 1_000_000);
    let significant = fraction.trim_end_matches('0').len().max(2);
    format!("${}.{}", micros / 1_000_000, &fraction[..significant])
}

#[cfg(test)]
mod tests {
    use coalition::ProviderId;
    use coalition_compute::{BondCount, Capabilities, DeclaredRates, Offer, ProviderCard};

    use super::*;

    const NOW: At = At { tick: 1_000, time_ms: 1_700_000_000_000 };

    fn card(region: &str, core_hour: &str, stale: bool, free_cpu: u64) -> CardView {
        let offer = Offer {
            name: "baremetal".parse().unwrap(),
            capabilities: Capabilities {
                regions: vec![region.parse().unwrap()],
                tdx_capable: false,
                mrtds: Vec::new(),
                max_cpu_millicores: 4_000,
                max_ram_mib: 8_192,
                max_instances: 8,
                instance_cpu_millicores: 2_000,
                instance_ram_mib: 4_096,
            },
            declared_rates: DeclaredRates { core_hour: core_hour.parse().unwrap(), gib_hour: "0".parse().unwrap() },
        };
        let free = FreeOffer { offer: offer.clone(), cpu_millicores: free_cpu, ram_mib: 8_192, instances: 8 };
        let provider_id = ProviderId::from_bytes([1; 32]);
        let card = ProviderCard {
            provider_id,
            provider_peer: [2; 32],
            shuffle_reply: coalition::ZERO_ID,
            offers: vec![offer],
            attestation: None,
            refreshed_at: AlmanacTick(1),
        };
        let bonds = BondCount { provider: provider_id, count: 0 };
        CardView { card, free: vec![free], bonds, age_ticks: 1, age_ms: 1_000, stale, attestation: None }
    }

    fn ask() -> Ask {
        Ask {
            cpu_millicores: 1_000,
            ram_mib: 256,
            region: Some("local".parse().unwrap()),
            duration_s: 600,
            max_rate: "0.05".parse().unwrap(),
            tdx: false,
            mrtd: None,
            until: Until::After(30_000),
            anyway: false,
        }
    }

    fn try_with(ask: &Ask, cards: &[CardView]) -> Result<Checked> {
        let params = ComputeParams::standard(1_000);
        check(ask, &Snapshot { cards, params: &params, now: NOW }, NOW.time_ms + 500)
    }

    fn refused(change: impl FnOnce(&mut Ask), cards: &[CardView]) -> (Kind, String, String) {
        let mut ask = ask();
        change(&mut ask);
        let error = try_with(&ask, cards).unwrap_err();
        (error.kind(), error.code().to_owned(), error.to_string())
    }

    #[test]
    fn a_request_that_fits_is_planned() {
        let checked =
            try_with(&ask(), &[card("local", "0.03", false, 4_000), card("local", "0.02", false, 4_000)]).unwrap();
        assert_eq!((checked.deadline, checked.duration_s, checked.wait_ms), (AlmanacTick(1_030), 600, 30_000));
        assert_eq!(checked.expected_rate, Some("0.02".parse().unwrap()));
        assert_eq!(checked.note, None);
    }

    #[test]
    fn every_reason_has_its_code_and_says_what_would_do() {
        let cards = [card("local", "0.02", false, 4_000), card("eu-west", "0.01", false, 4_000)];
        let (kind, code, text) = refused(|ask| ask.region = Some("mars".parse().unwrap()), &cards);
        assert_eq!((kind, code.as_str()), (Kind::Refused, "region_not_served"));
        assert!(text.contains("mars") && text.contains("eu-west, local"), "{text}");

        let (kind, code, text) = refused(|ask| ask.max_rate = "0.01".parse().unwrap(), &cards);
        assert_eq!((kind, code.as_str()), (Kind::Refused, "price_too_low"));
        assert!(text.contains("$0.02") && text.contains("--max-rate 0.02"), "{text}");

        let (kind, code, text) = refused(|ask| ask.cpu_millicores = 3_000, &cards);
        assert_eq!((kind, code.as_str()), (Kind::Refused, "too_large"));
        assert!(text.contains("3 cores") && text.contains("2 cores and 4 GiB"), "{text}");

        let (kind, code, text) = refused(|ask| ask.until = Until::At(NOW.time_ms - 1), &cards);
        assert_eq!((kind, code.as_str()), (Kind::Input, "deadline_passed"));
        assert!(text.contains("2023-11-14"), "{text}");

        let (kind, code, _) = refused(|ask| ask.duration_s = 8 * 86_400, &cards);
        assert_eq!((kind, code.as_str()), (Kind::Input, "duration_too_long"));
        let (kind, code, _) = refused(|ask| ask.until = Until::After(2 * 86_400_000), &cards);
        assert_eq!((kind, code.as_str()), (Kind::Input, "deadline_too_far"));
        assert_eq!(refused(|ask| ask.tdx = true, &cards).1, "no_attestation");
        assert_eq!(refused(|_| (), &[]).1, "no_providers");
        let (_, code, text) = refused(|_| (), &[card("local", "0.02", true, 4_000)]);
        assert!(code == "no_providers" && text.contains("silent"), "{text}");
    }

    #[test]
    fn the_disk_is_made_to_fit_the_image_and_never_smaller_than_it() {
        assert_eq!(disk_mib(None, 1 << 20).unwrap(), 1_024);
        assert_eq!(disk_mib(None, (2 << 30) + 1).unwrap(), 2_049 + 512);
        assert_eq!(disk_mib(Some(1), 1 << 20).unwrap(), 1);
        let error = disk_mib(Some(1_024), (1 << 30) + 1).unwrap_err();
        assert_eq!((error.kind(), error.code()), (Kind::Input, "disk_too_small"));
        let text = error.to_string();
        assert!(text.contains("1 GiB of disk") && text.contains("--disk 1537MiB"), "{text}");
        assert_eq!(disk_mib(None, u64::MAX).unwrap_err().code(), "disk_too_small");
    }

    #[test]
    fn anyway_sends_what_does_not_fit_now() {
        let mut ask = ask();
        ask.anyway = true;
        let checked = try_with(&ask, &[]).unwrap();
        assert!(checked.note.is_some() && checked.expected_rate.is_none());
        ask.until = Until::At(1);
        assert!(try_with(&ask, &[]).is_err(), "a passed deadline stays wrong");
    }

    #[test]
    fn a_full_offer_is_worth_waiting_for() {
        let checked = try_with(&ask(), &[card("local", "0.02", false, 999)]).unwrap();
        assert!(checked.note.is_some_and(|note| note.contains("full")));
    }

    #[test]
    fn a_clock_an_hour_off_is_named_both_ways() {
        let hour = 3_600_000;
        for (local, direction) in [(NOW.time_ms + hour, "ahead of"), (NOW.time_ms - hour, "behind")] {
            let error = check_clock(local, NOW.time_ms).unwrap_err();
            assert_eq!(error.code(), "clock_off");
            assert!(error.to_string().contains(&format!("1h {direction}")), "{error}");
        }
        check_clock(NOW.time_ms + MAX_CLOCK_SKEW_MS, NOW.time_ms).unwrap();
    }

    #[test]
    fn rates_are_shown_rounded_up() {
        assert_eq!(dollars("0.02".parse().unwrap()), "$0.02");
        assert_eq!(dollars("0.0212345".parse().unwrap()), "$0.021235");
        assert_eq!(dollars("12".parse().unwrap()), "$12.00");
        assert!(dollars(RateQ64(1)).ends_with("000001"));
    }
}
