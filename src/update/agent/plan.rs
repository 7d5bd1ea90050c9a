//! Which offer is followed, and when: decisions alone, without network, disk or clock.

use std::time::Duration;

use crate::clock::Moment;
use crate::update::bundle::Hash;
use crate::update::message::{Offer, in_wave};
use crate::update::slots::Refusal;

/// First pause after a failed attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Attempts after which a bundle whose bytes are not what was signed is given up as long as its offer stays.
const ATTEMPTS: u32 = 3;
/// Bundles of which the reason for their refusal is remembered.
const REMEMBERED: usize = 8;

/// What is known of the models here.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The largest version that was in force or failed its proof.
    pub mark: u64,
    /// A model is on probation: nothing else begins.
    pub on_probation: bool,
    /// Versions that failed or were taken back.
    pub refused: &'a [Refusal],
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// No offer asks for anything.
    Rest,
    /// The offer is for another time.
    Wait {
        /// The offer.
        offer: Offer,
        /// Why.
        why: String,
        /// The last attempt failed.
        failed: bool,
    },
    /// The offer is not taken.
    Refuse {
        /// The offer.
        offer: Offer,
        /// Why.
        why: String,
    },
    /// It is to be fetched now.
    Fetch(Offer),
}

/// How far the attempts at a bundle are.
#[derive(Clone, Debug)]
struct Attempts {
    bundle: Hash,
    not_before: Moment,
    failures: u32,
    /// Those of them in which the bytes were wrong.
    wrong: u32,
    why: String,
}

/// Which offer is followed, and when.
#[derive(Debug)]
pub struct Plan {
    line: String,
    station: String,
    spread: Duration,
    longest: Duration,
    offers: Vec<Option<Offer>>,
    attempts: Option<Attempts>,
    refused: Vec<(Hash, String)>,
}

impl Plan {
    /// For a station in so many groups; begins are spread over `spread`, pauses are no longer than `longest`.
    #[must_use]
    pub fn new(line: &str, station: &str, groups: usize, spread: Duration, longest: Duration) -> Self {
        let (line, station, offers) = (line.into(), station.into(), vec![None; groups]);
        Self { line, station, spread, longest, offers, attempts: None, refused: Vec::new() }
    }

    /// A group's offer has come, or was taken back.
    pub fn hear(&mut self, group: usize, offer: Option<Offer>) {
        let Some(place) = self.offers.get_mut(group) else { return };
        *place = offer;
        // What is offered no more is forgotten, so that it can be offered anew.
        let offered: Vec<Hash> = self.offers.iter().flatten().map(|offer| offer.bundle).collect();
        self.refused.retain(|(bundle, _)| offered.contains(bundle));
        self.attempts.take_if(|attempts| !offered.contains(&attempts.bundle));
    }

    /// The offer of the largest version that could be taken, with the group that it came from.
    fn best(&self, mark: u64) -> Option<(usize, &Offer)> {
        let offers = self.offers.iter().enumerate().filter_map(|(group, offer)| Some((group, offer.as_ref()?)));
        // Of the same bundle in two groups, the one that lets this station in counts.
        let rank = |offer: &Offer| (offer.number, !offer.halted && self.is_in(offer));
        offers.filter(|(_, offer)| offer.number > mark).max_by_key(|(_, offer)| rank(offer))
    }

    fn is_in(&self, offer: &Offer) -> bool {
        in_wave(&self.line, &self.station, offer)
    }

    /// What to do at `now`.
    pub fn next(&mut self, view: &View<'_>, now: Moment) -> Step {
        let Some(offer) = self.best(view.mark).map(|(_, offer)| offer.clone()) else {
            // An offer of a version that was refused for good says so as long as it stays.
            let offered = self.offers.iter().flatten().max_by_key(|offer| offer.number);
            let refusal = offered.and_then(|offer| {
                let refusal = view.refused.iter().rev().find(|refusal| refusal.version == offer.number)?;
                Some(Step::Refuse { offer: offer.clone(), why: refusal.why.clone() })
            });
            return refusal.unwrap_or(Step::Rest);
        };
        let wait = |offer: Offer, why: &str| Step::Wait { offer, why: why.into(), failed: false };
        if let Some((_, why)) = self.refused.iter().find(|(bundle, _)| *bundle == offer.bundle) {
            return Step::Refuse { why: why.clone(), offer };
        }
        if view.on_probation {
            return wait(offer, "the model in force is on probation");
        }
        if offer.halted {
            return wait(offer, "the rollout is halted");
        }
        if !self.is_in(&offer) {
            return wait(offer, "a later wave");
        }
        if offer.url.is_none() && !offer.chunks {
            return wait(offer, "the offer says nowhere where the bundle lies");
        }
        let begins = now + self.spread.mul_f64(self.part(&offer, 0));
        let attempts = match &mut self.attempts {
            Some(attempts) if attempts.bundle == offer.bundle => attempts,
            other => other.insert(Attempts {
                bundle: offer.bundle,
                not_before: begins,
                failures: 0,
                wrong: 0,
                why: "its share of the time".into(),
            }),
        };
        if now < attempts.not_before {
            return Step::Wait { why: attempts.why.clone(), failed: attempts.failures > 0, offer };
        }
        Step::Fetch(offer)
    }

    /// A number of this station's own, 0 to 1, for an attempt at an offer.
    fn part(&self, offer: &Offer, attempt: u32) -> f64 {
        let mut hash = blake3::Hasher::new();
        hash.update(self.line.as_bytes()).update(b"/").update(self.station.as_bytes()).update(b"/");
        hash.update(&offer.bundle.0).update(&attempt.to_le_bytes());
        let [a, b, c, d, ..] = *hash.finalize().as_bytes();
        f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX)
    }

    /// An attempt has failed; `wrong`: its bytes were not what was signed, which no waiting mends for long.
    pub fn failed(&mut self, offer: &Offer, why: String, wrong: bool, now: Moment) {
        let Some(attempts) = self.attempts.as_mut().filter(|attempts| attempts.bundle == offer.bundle) else { return };
        attempts.failures = attempts.failures.saturating_add(1);
        attempts.wrong += u32::from(wrong);
        if attempts.wrong >= ATTEMPTS {
            self.refuse(offer, why);
            return;
        }
        attempts.why = why;
        let failures = attempts.failures;
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(self.longest);
        let pause = pause.mul_f64(0.5 + self.part(offer, failures));
        if let Some(attempts) = &mut self.attempts {
            attempts.not_before = now + pause;
        }
    }

    /// An attempt got on: the next pause is the first again.
    pub fn got_on(&mut self, offer: &Offer) {
        if let Some(attempts) = self.attempts.as_mut().filter(|attempts| attempts.bundle == offer.bundle) {
            attempts.failures = 0;
        }
    }

    /// The bundle is not taken as long as it is offered.
    pub fn refuse(&mut self, offer: &Offer, why: String) {
        if self.refused.len() == REMEMBERED {
            self.refused.remove(0);
        }
        self.refused.push((offer.bundle, why));
    }

    /// Bundles that are refused as long as they are offered: version and reason.
    pub fn refusals(&self) -> impl Iterator<Item = (u64, &str)> {
        self.refused.iter().filter_map(|(bundle, why)| {
            let offer = self.offers.iter().flatten().find(|offer| offer.bundle == *bundle)?;
            Some((offer.number, why.as_str()))
        })
    }

    /// An offer of this version, if there is one.
    #[must_use]
    pub fn offer_of(&self, version: u64) -> Option<&Offer> {
        self.offers.iter().flatten().find(|offer| offer.number == version)
    }

    /// The group from which an offer came that is being followed.
    #[must_use]
    pub fn group_of(&self, offer: &Offer) -> Option<usize> {
        self.best(0).filter(|(_, best)| best.bundle == offer.bundle).map(|(group, _)| group)
    }

    /// Whether an offer that is being followed is still to be: why not.
    #[must_use]
    pub fn called_off(&self, offer: &Offer) -> Option<&'static str> {
        match self.best(0).map(|(_, best)| best) {
            None => Some("the offer was taken back"),
            Some(best) if best.bundle != offer.bundle => Some("there is another offer"),
            Some(best) if best.halted => Some("the rollout was halted"),
            Some(best) if !self.is_in(best) => Some("the wave was made smaller"),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Date;
    use crate::update::message::CHUNK_BYTES;

    const VIEW: View<'_> = View { mark: 7, on_probation: false, refused: &[] };

    fn offer(number: u64) -> Offer {
        Offer {
            number,
            bundle: Hash::of(&number.to_le_bytes()),
            bytes: 1000,
            url: Some("https://a/b".into()),
            chunks: false,
            chunk_bytes: CHUNK_BYTES,
            percent: 100,
            salt: String::new(),
            halted: false,
            issued: Date::default(),
        }
    }

    fn plan() -> Plan {
        Plan::new("line1", "el-07", 2, Duration::ZERO, Duration::from_secs(60))
    }

    fn at(seconds: u64) -> Moment {
        Moment::at(1000 + seconds, 0)
    }

    #[test]
    fn the_newest_offer_is_followed_and_old_or_replayed_ones_are_passed_over() {
        let mut plan = plan();
        assert_eq!(plan.next(&VIEW, at(0)), Step::Rest);
        for old in [1, 7] {
            plan.hear(0, Some(offer(old)));
            assert_eq!(plan.next(&VIEW, at(0)), Step::Rest, "{old}");
        }
        plan.hear(1, Some(offer(9)));
        plan.hear(0, Some(offer(8)));
        assert_eq!(plan.next(&VIEW, at(0)), Step::Fetch(offer(9)));
        plan.hear(1, None);
        assert_eq!(plan.next(&VIEW, at(0)), Step::Fetch(offer(8)));
        plan.hear(7, Some(offer(10)));
        assert_eq!(plan.next(&VIEW, at(0)), Step::Fetch(offer(8)), "no such group");
    }

    #[test]
    fn a_station_waits_for_its_wave_a_halted_rollout_and_the_end_of_a_probation() {
        let mut plan = plan();
        for (changed, view, said) in [
            (Offer { percent: 0, ..offer(8) }, VIEW, "a later wave"),
            (Offer { halted: true, ..offer(8) }, VIEW, "the rollout is halted"),
            (Offer { url: None, ..offer(8) }, VIEW, "the offer says nowhere where the bundle lies"),
            (offer(8), View { on_probation: true, ..VIEW }, "the model in force is on probation"),
        ] {
            plan.hear(0, Some(changed.clone()));
            let expected = Step::Wait { offer: changed, why: said.into(), failed: false };
            assert_eq!(plan.next(&view, at(0)), expected);
        }
        plan.hear(0, Some(offer(8)));
        assert_eq!(plan.next(&VIEW, at(0)), Step::Fetch(offer(8)));
    }

    #[test]
    fn pauses_grow_differ_by_station_and_end() {
        let pause = |station: &str, failures| {
            let mut plan = Plan::new("line1", station, 1, Duration::ZERO, Duration::from_secs(60));
            plan.hear(0, Some(offer(8)));
            for _ in 0..failures {
                assert!(matches!(plan.next(&VIEW, at(1_000_000)), Step::Fetch(_)));
                plan.failed(&offer(8), "it broke".into(), false, at(0));
            }
            (0..).find(|&s| matches!(plan.next(&VIEW, at(s)), Step::Fetch(_))).unwrap()
        };
        let pauses: Vec<u64> = (1..12).map(|failures| pause("el-07", failures)).collect();
        assert!(pauses[0] <= 3 && pauses[10] >= 30 && pauses.iter().all(|&pause| pause <= 90), "{pauses:?}");
        assert!((0..20).any(|i| pause(&format!("el-{i}"), 8) != pauses[7]));
    }

    #[test]
    fn begins_are_spread() {
        let begins = |station: &str| {
            let mut plan = Plan::new("line1", station, 1, Duration::from_secs(100), Duration::from_secs(60));
            plan.hear(0, Some(offer(8)));
            plan.next(&VIEW, at(0));
            (0..).find(|&s| matches!(plan.next(&VIEW, at(s)), Step::Fetch(_))).unwrap()
        };
        let all: Vec<u64> = (0..50).map(|i| begins(&format!("el-{i}"))).collect();
        assert!(all.iter().all(|&s| s <= 100) && all.iter().any(|&s| s < 30) && all.iter().any(|&s| s > 70), "{all:?}");
    }

    #[test]
    fn wrong_bytes_are_tried_again_a_few_times_and_then_refused_until_the_offer_changes() {
        let mut plan = plan();
        plan.hear(0, Some(offer(8)));
        for attempt in 0..3 {
            assert_eq!(plan.next(&VIEW, at(100 * attempt)), Step::Fetch(offer(8)));
            plan.failed(&offer(8), "not what was signed".into(), true, at(100 * attempt));
        }
        let refused = Step::Refuse { offer: offer(8), why: "not what was signed".into() };
        assert_eq!(plan.next(&VIEW, at(10_000)), refused);
        // Sent again or raised, it is the same.
        plan.hear(0, Some(offer(8)));
        assert_eq!(plan.next(&VIEW, at(10_000)), refused);
        plan.hear(0, None);
        plan.hear(0, Some(offer(8)));
        assert_eq!(plan.next(&VIEW, at(10_000)), Step::Fetch(offer(8)));
    }

    #[test]
    fn a_version_that_was_taken_back_is_never_taken_again_and_the_offer_is_answered() {
        let mut plan = plan();
        plan.hear(0, Some(offer(7)));
        let refused = [Refusal { version: 7, was_in_force: true, why: "too many".into() }];
        let view = View { refused: &refused, ..VIEW };
        assert_eq!(plan.next(&view, at(0)), Step::Refuse { offer: offer(7), why: "too many".into() });
        assert_eq!(plan.next(&VIEW, at(0)), Step::Rest);
    }

    #[test]
    fn what_is_being_followed_is_called_off_when_its_offer_is_halted_replaced_or_gone() {
        let mut plan = plan();
        plan.hear(0, Some(offer(8)));
        assert_eq!(plan.called_off(&offer(8)), None);
        for (change, said) in [
            (Some(Offer { halted: true, ..offer(8) }), "the rollout was halted"),
            (Some(Offer { percent: 0, ..offer(8) }), "the wave was made smaller"),
            (Some(offer(9)), "there is another offer"),
            (None, "the offer was taken back"),
        ] {
            plan.hear(0, change);
            assert_eq!(plan.called_off(&offer(8)), Some(said));
        }
        plan.hear(0, Some(Offer { percent: 100, issued: Date::from_millis(5), ..offer(8) }));
        assert_eq!(plan.called_off(&offer(8)), None, "sent again");
        plan.hear(1, Some(Offer { halted: true, ..offer(8) }));
        assert_eq!(plan.called_off(&offer(8)), None, "its own group goes on");
    }
}
