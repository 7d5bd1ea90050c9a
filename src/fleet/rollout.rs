//! How far an offer goes: waves that follow each other as their stations become good, and stop when they do not.
//!
//! The decision is a function of what the broker keeps and of time; [`Watch`] measures the times. A rollout that is killed
//! begins again from the retained offer: its soak then begins anew, and nothing else is lost.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::view::Name;
use crate::clock::Moment;

/// How many stations may fail before the rollout halts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many.
    Count(usize),
    /// So large a part of the stations that were offered it, 0 to 1.
    Share(f64),
}

impl Limit {
    /// Whether so many failures of so many stations are too many.
    #[must_use]
    pub fn is_passed(self, failures: usize, of: usize) -> bool {
        match self {
            Self::Count(most) => failures > most,
            Self::Share(most) => failures as f64 > most * of as f64,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(most) => write!(f, "{most}"),
            Self::Share(most) => write!(f, "{}%", most * 100.0),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number of stations such as 2 nor a share such as 5%");
        match text.strip_suffix('%') {
            Some(share) => share
                .parse::<f64>()
                .ok()
                .filter(|share| (0.0..=100.0).contains(share))
                .map(|share| Self::Share(share / 100.0))
                .ok_or_else(wrong),
            None => text.parse().map(Self::Count).map_err(|_| wrong()),
        }
    }
}

/// Percents of the stations, each larger than the one before, the last 100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waves(Vec<u8>);

impl Waves {
    /// The first wave that reaches beyond so many percent.
    #[must_use]
    pub fn after(&self, percent: u8) -> Option<u8> {
        self.0.iter().copied().find(|wave| *wave > percent)
    }

    /// The first wave.
    #[must_use]
    pub fn first(&self) -> u8 {
        self.0[0]
    }
}

impl fmt::Display for Waves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(u8::to_string).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for Waves {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let waves: Option<Vec<u8>> = text.split(',').map(|word| word.trim().parse().ok()).collect();
        let rising = |waves: &Vec<u8>| {
            waves.windows(2).all(|pair| pair[0] < pair[1])
                && waves.first().is_some_and(|first| *first > 0)
                && waves.last() == Some(&100)
        };
        waves
            .filter(rising)
            .map(Self)
            .ok_or_else(|| format!("`{text}`: give rising percents from 1 that end with 100, such as 1,10,50,100"))
    }
}

/// How a rollout goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Its waves.
    pub waves: Waves,
    /// How long all stations of a wave must have been good before the next wave begins.
    pub soak: Duration,
    /// How long a station may take until it is good, from when the offer reached it or it came back; one that takes longer
    /// has failed.
    pub patience: Duration,
    /// How many stations may fail.
    pub limit: Limit,
}

/// What became of an offer at one station of its waves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has the model, and it is good there.
    Good,
    /// It has not come so far yet.
    Working,
    /// It refused the model or took it back: it has the one before.
    Failed,
    /// It went offline and had not begun: it takes the offer when it is back.
    Away,
}

/// The stations that an offer's waves have reached so far, by their fates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good.
    pub good: usize,
    /// On the way.
    pub working: usize,
    /// On the way for too long.
    pub silent: usize,
    /// Refused or taken back.
    pub failed: usize,
    /// Offline before they began.
    pub away: usize,
}

impl Tally {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> usize {
        self.good + self.working + self.silent + self.failed + self.away
    }
}

/// Why nothing is done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Stations are on the way.
    Working,
    /// Every station of the wave is offline: it has proven nothing.
    NobodyThere,
    /// All are good, and shall be so for a while.
    Soak,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Offer it to so many percent.
    Raise(u8),
    /// Wait.
    Hold(Wait),
    /// Stop the offer, and why.
    Halt(String),
    /// Every station that is there has it.
    Done,
}

/// Decides what to do with an offer that has reached `percent`, by the fates of the stations it has reached; `settled` is
/// the time since none of them is on the way.
#[must_use]
pub fn decide(course: &Course, percent: u8, tally: &Tally, settled: Duration) -> Step {
    if course.limit.is_passed(tally.failed + tally.silent, tally.all()) {
        let mut why = format!("{} of {} stations refused it or went back", tally.failed, tally.all());
        if tally.silent > 0 {
            let minutes = course.patience.as_secs_f64() / 60.0;
            why += &format!(", {} were not good within {minutes:.0} minutes", tally.silent);
        }
        return Step::Halt(format!("{why}; {} may", course.limit));
    }
    if tally.working > 0 {
        return Step::Hold(Wait::Working);
    }
    // A wave of which nobody is there has proven nothing; one without members has nothing to prove.
    if tally.good == 0 && tally.all() > 0 {
        if tally.all() == tally.away {
            return Step::Hold(Wait::NobodyThere);
        }
        return Step::Halt(format!("none of {} stations is good with it", tally.all()));
    }
    let next = course.waves.after(percent);
    if next.is_some() && tally.all() > 0 && settled < course.soak {
        return Step::Hold(Wait::Soak);
    }
    next.map_or(Step::Done, Step::Raise)
}

/// The times of a rollout, measured by looking at it.
#[derive(Clone, Debug)]
pub struct Watch {
    percent: u8,
    offered: Moment,
    /// Since when stations are on the way; none before the first look, since when they began is not known then.
    working: Option<BTreeMap<Name, Moment>>,
    settled: Option<Moment>,
}

impl Watch {
    /// Begins with an offer that reached `percent` at `offered`.
    #[must_use]
    pub fn new(percent: u8, offered: Moment) -> Self {
        Self { percent, offered, working: None, settled: None }
    }

    /// What is to be done now, given all stations that the offer has reached.
    pub fn look<'a>(
        &mut self,
        course: &Course,
        fates: impl Iterator<Item = (&'a Name, Fate)>,
        now: Moment,
    ) -> (Tally, Step) {
        let (mut tally, mut working) = (Tally::default(), BTreeMap::new());
        for (name, fate) in fates {
            match fate {
                Fate::Good => tally.good += 1,
                Fate::Failed => tally.failed += 1,
                Fate::Away => tally.away += 1,
                Fate::Working => {
                    let known = self.working.as_ref().map(|before| before.get(name).copied().unwrap_or(now));
                    let since = known.unwrap_or(self.offered);
                    working.insert(name.clone(), since);
                    *if now.since(since) < course.patience { &mut tally.working } else { &mut tally.silent } += 1;
                }
            }
        }
        self.working = Some(working);
        self.settled = (tally.working == 0).then(|| self.settled.unwrap_or(now));
        let settled = self.settled.map_or(Duration::ZERO, |since| now.since(since));
        (tally, decide(course, self.percent, &tally, settled))
    }

    /// Nothing could happen for so long.
    pub fn pause(&mut self, span: Duration) {
        self.offered = self.offered + span;
        self.settled = self.settled.map(|since| since + span);
        self.working.iter_mut().flat_map(BTreeMap::values_mut).for_each(|since| *since = *since + span);
    }

    /// The offer reaches more stations, or fewer.
    pub fn raised(&mut self, percent: u8) {
        (self.percent, self.settled) = (percent, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn course() -> Course {
        Course {
            waves: "1,10,50,100".parse().unwrap(),
            soak: 5 * MINUTE,
            patience: 60 * MINUTE,
            limit: Limit::Count(0),
        }
    }

    fn tally(good: usize, working: usize, silent: usize, failed: usize, away: usize) -> Tally {
        Tally { good, working, silent, failed, away }
    }

    #[test]
    fn a_wave_follows_when_all_that_are_there_have_been_good_for_the_soak() {
        use Step::{Done, Hold, Raise};
        for (percent, fates, settled, expected) in [
            (1, tally(0, 1, 0, 0, 0), 0, Hold(Wait::Working)),
            (1, tally(1, 0, 0, 0, 0), 4, Hold(Wait::Soak)),
            (1, tally(1, 0, 0, 0, 0), 5, Raise(10)),
            // Offline stations are not waited for, unless nobody else is there.
            (10, tally(9, 0, 0, 0, 3), 5, Raise(50)),
            (10, tally(0, 0, 0, 0, 3), 90, Hold(Wait::NobodyThere)),
            // Nothing to prove: nobody's hash lies in this wave.
            (1, tally(0, 0, 0, 0, 0), 0, Raise(10)),
            // An offer that was set by hand between two waves goes on with the next.
            (25, tally(9, 0, 0, 0, 0), 5, Raise(50)),
            // After the last wave nothing is to be waited for.
            (100, tally(99, 0, 0, 0, 1), 0, Done),
            (100, tally(99, 1, 0, 0, 0), 0, Hold(Wait::Working)),
        ] {
            assert_eq!(decide(&course(), percent, &fates, settled * MINUTE), expected, "{percent} % {fates:?}");
        }
    }

    #[test]
    fn failures_beyond_the_limit_halt_whatever_else_is_true() {
        for (limit, percent, fates, halts) in [
            ("0", 1, tally(0, 0, 0, 1, 0), true),
            ("0", 100, tally(99, 0, 0, 1, 0), true),
            ("0", 10, tally(5, 3, 0, 1, 2), true),
            ("2", 10, tally(8, 0, 0, 2, 0), false),
            ("2", 10, tally(7, 0, 0, 3, 0), true),
            ("10%", 10, tally(18, 0, 0, 2, 0), false),
            ("10%", 10, tally(17, 0, 0, 3, 0), true),
            // Within the limit, but nobody speaks for it.
            ("2", 1, tally(0, 0, 0, 1, 0), true),
            ("2", 1, tally(0, 0, 1, 0, 1), true),
            ("2", 1, tally(0, 1, 0, 1, 0), false),
            // Silence is failure, being away or on the way is not.
            ("0", 10, tally(8, 0, 1, 0, 0), true),
            ("1", 10, tally(7, 0, 1, 1, 0), true),
            ("2", 10, tally(7, 0, 1, 1, 0), false),
            ("0", 10, tally(1, 0, 0, 0, 9), false),
            ("0", 10, tally(1, 9, 0, 0, 0), false),
        ] {
            let course = Course { limit: limit.parse().unwrap(), ..course() };
            let step = decide(&course, percent, &fates, 90 * MINUTE);
            assert_eq!(matches!(step, Step::Halt(_)), halts, "{limit} {fates:?}: {step:?}");
        }
        let Step::Halt(why) = decide(&course(), 10, &tally(6, 0, 2, 1, 0), MINUTE) else { panic!() };
        assert_eq!(why, "1 of 9 stations refused it or went back, 2 were not good within 60 minutes; 0 may");
    }

    fn at(minutes: u32) -> Moment {
        Moment::default() + minutes * MINUTE
    }

    /// Looks at stations that are named by their place.
    fn look(watch: &mut Watch, course: &Course, fates: &[Fate], minutes: u32) -> Step {
        let names: Vec<Name> = (0..fates.len()).map(|i| Name { line: "l".into(), station: format!("s{i}") }).collect();
        watch.look(course, names.iter().zip(fates.iter().copied()), at(minutes)).1
    }

    #[test]
    fn each_station_has_its_time_from_when_it_was_reached_or_came_back() {
        use Fate::{Away, Good, Working};
        let (course, mut watch) = (course(), Watch::new(10, at(0)));
        // Found on the way: since the offer, as far as anybody knows.
        assert_eq!(look(&mut watch, &course, &[Good, Working, Away], 30), Step::Hold(Wait::Working));
        assert_eq!(look(&mut watch, &course, &[Good, Good, Away], 59), Step::Hold(Wait::Soak));
        // It comes back long after the wave began.
        assert_eq!(look(&mut watch, &course, &[Good, Good, Working], 63), Step::Hold(Wait::Working));
        assert_eq!(look(&mut watch, &course, &[Good, Good, Working], 122), Step::Hold(Wait::Working));
        assert!(matches!(look(&mut watch, &course, &[Good, Good, Working], 123), Step::Halt(_)));
        let mut late = Watch::new(10, at(0));
        assert!(matches!(look(&mut late, &course, &[Good, Working], 60), Step::Halt(_)), "one that began anew");
    }

    #[test]
    fn silent_stations_within_the_limit_do_not_hold_the_others_up() {
        use Fate::{Good, Working};
        let course = Course { limit: Limit::Count(1), ..course() };
        let mut watch = Watch::new(10, at(0));
        assert_eq!(look(&mut watch, &course, &[Good, Working], 59), Step::Hold(Wait::Working));
        assert_eq!(look(&mut watch, &course, &[Good, Working], 60), Step::Hold(Wait::Soak));
        assert_eq!(look(&mut watch, &course, &[Good, Working], 65), Step::Raise(50));
        watch.raised(50);
        assert_eq!(look(&mut watch, &course, &[Good, Working, Working], 66), Step::Hold(Wait::Working));
        assert_eq!(look(&mut watch, &course, &[Good, Working, Good], 67), Step::Hold(Wait::Soak));
    }

    #[test]
    fn a_station_that_falls_behind_begins_the_soak_anew_and_a_lost_broker_costs_nobody_time() {
        use Fate::{Good, Working};
        let (course, mut watch) = (course(), Watch::new(10, at(0)));
        assert_eq!(look(&mut watch, &course, &[Good, Good], 1), Step::Hold(Wait::Soak));
        assert_eq!(look(&mut watch, &course, &[Good, Working], 4), Step::Hold(Wait::Working));
        assert_eq!(look(&mut watch, &course, &[Good, Good], 6), Step::Hold(Wait::Soak));
        assert_eq!(look(&mut watch, &course, &[Good, Good], 10), Step::Hold(Wait::Soak));
        watch.pause(20 * MINUTE);
        assert_eq!(look(&mut watch, &course, &[Good, Good], 30), Step::Hold(Wait::Soak));
        assert_eq!(look(&mut watch, &course, &[Good, Good], 31), Step::Raise(50));
        watch.raised(50);
        assert_eq!(look(&mut watch, &course, &[Good, Good, Working], 32), Step::Hold(Wait::Working));
        watch.pause(20 * MINUTE);
        assert_eq!(look(&mut watch, &course, &[Good, Good, Working], 111), Step::Hold(Wait::Working));
        assert!(matches!(look(&mut watch, &course, &[Good, Good, Working], 112), Step::Halt(_)));
    }

    #[test]
    fn waves_rise_to_all_and_limits_are_counts_or_shares() {
        for bad in ["", "0,100", "10,10,100", "50,10,100", "1,10", "1,x,100", "1,101", "100,"] {
            assert!(bad.parse::<Waves>().is_err(), "{bad}");
        }
        assert_eq!("1, 10,100".parse::<Waves>().unwrap().to_string(), "1,10,100");
        assert_eq!("5%".parse(), Ok(Limit::Share(0.05)));
        assert_eq!("3".parse(), Ok(Limit::Count(3)));
        for bad in ["", "%", "-1", "101%", "nan%", "a"] {
            assert!(bad.parse::<Limit>().is_err(), "{bad}");
        }
    }
}
