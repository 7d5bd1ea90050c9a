//! The section `[update]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::update::message::MAX_GROUPS;
use crate::update::slots::Limits;

/// How a station takes new models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct UpdateConfig {
    /// The state folder, with the slots and the keys that are trusted; empty: the station takes no updates and runs
    /// `model.path`. Default: empty.
    pub state: PathBuf,
    /// Groups whose offers the station listens to at the broker: at most 8, each 1 to 64 letters, digits, `-`, `_`, `.`.
    /// Default: none.
    pub groups: Vec<String>,
    /// Kilobytes a second that a download may take, 1 to 1,000,000; 0: as many as there are. Default: 1000.
    pub bandwidth_kb_s: u32,
    /// Seconds over which the stations spread the begin of a download, each by its name, 0 to 86,400. Default: 60.
    pub spread_s: u32,
    /// Longest pause between attempts in seconds, 1 to 86,400; they begin with two and double. Default: 600.
    pub retry_max_s: u32,
    /// PEM file of the authorities that sign the certificates of HTTPS servers. Default:
    /// `/etc/ssl/certs/ca-certificates.crt`.
    pub ca: PathBuf,
    /// Take bundles over HTTP without TLS too: others can see and hold up a download then, never change what is in it.
    /// Default: false.
    pub allow_http: bool,
    /// Live frames that a new model judges beside the old one.
    pub shadow: ShadowConfig,
    /// When a new model is good, and when it is taken back.
    pub probation: ProbationConfig,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            state: PathBuf::new(),
            groups: Vec::new(),
            bandwidth_kb_s: 1000,
            spread_s: 60,
            retry_max_s: 600,
            ca: "/etc/ssl/certs/ca-certificates.crt".into(),
            allow_http: false,
            shadow: ShadowConfig::default(),
            probation: ProbationConfig::default(),
        }
    }
}

/// What a new model must show on live frames before it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ShadowConfig {
    /// Frames, 0 to 10,000; 0: none is looked at. Default: 50.
    pub frames: u32,
    /// Share of them, 0 to 1, on which it may come to another class, or to none where there was one. Default: 0.1.
    pub flips: f64,
    /// Mean difference of the scores, 0 to 1, that is allowed. Default: 0.1.
    pub difference: f64,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self { frames: 50, flips: 0.1, difference: 0.1 }
    }
}

/// How a model in force is watched until it is good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ProbationConfig {
    /// Cells after which it is good, 50 to 1,000,000. Default: 500.
    pub cells: u64,
    /// Minutes after which it is good too, once it has judged 50 cells, 1 to 100,000. Default: 480.
    pub minutes: u64,
    /// Starts of the station with it, above which it counts as a crash loop, 1 to 100. Default: 3.
    pub starts: u32,
    /// Largest share of INVALID cells, 0 to 1; what camera and triggers are to blame for does not count. Default: 0.1.
    pub invalid: f64,
    /// Largest share of rejected cells, 0 to 1. Default: 0.3.
    pub rejected: f64,
    /// Take it back at the drift alarm, see `operations.drift`. Default: true.
    pub drift: bool,
}

impl Default for ProbationConfig {
    fn default() -> Self {
        let Limits { cells, seconds, starts, invalid, rejected } = Limits::default();
        Self { cells, minutes: seconds / 60, starts, invalid, rejected, drift: true }
    }
}

impl ProbationConfig {
    /// The same for the slots.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let Self { cells, minutes, starts, invalid, rejected, .. } = *self;
        Limits { cells, seconds: minutes.saturating_mul(60), starts, invalid, rejected }
    }
}

impl UpdateConfig {
    /// Whether the station takes updates.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.state.as_os_str().is_empty()
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Which key is wrong, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let name = |name: &&String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !(1..=64).contains(&name.len()) || !name.bytes().all(plain) || name.starts_with('.')
        };
        if let Some(bad) = self.groups.iter().find(name) {
            return Err(format!("groups = {bad:?}: 1 to 64 letters, digits, -, _ and . are allowed"));
        }
        if self.groups.len() > MAX_GROUPS {
            return Err(format!("groups: {} names, at most {MAX_GROUPS} are allowed", self.groups.len()));
        }
        let (shadow, probation) = (&self.shadow, &self.probation);
        for (key, value, from, to) in [
            ("bandwidth-kb-s", self.bandwidth_kb_s.into(), 0, 1_000_000),
            ("spread-s", self.spread_s.into(), 0, 86_400),
            ("retry-max-s", self.retry_max_s.into(), 1, 86_400),
            ("shadow.frames", shadow.frames.into(), 0, 10_000),
            ("probation.cells", probation.cells, 50, 1_000_000),
            ("probation.minutes", probation.minutes, 1, 100_000),
            ("probation.starts", probation.starts.into(), 1, 100),
        ] {
            if !(from..=to).contains(&value) {
                return Err(format!("{key} = {value}: {from} to {to} are allowed"));
            }
        }
        for (key, share) in [
            ("shadow.flips", shadow.flips),
            ("shadow.difference", shadow.difference),
            ("probation.invalid", probation.invalid),
            ("probation.rejected", probation.rejected),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{key} = {share}: 0 to 1 are allowed"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named_with_what_is_allowed() {
        UpdateConfig::default().validate().unwrap();
        for (text, said) in [
            ("groups = [\"a/b\"]", "groups = \"a/b\": 1 to 64"),
            ("groups = [\"\"]", "groups = \"\""),
            ("groups = [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]", "9 names"),
            ("retry-max-s = 0", "retry-max-s = 0: 1 to 86400"),
            ("[shadow]\nflips = nan", "shadow.flips = NaN: 0 to 1"),
            ("[probation]\ncells = 5", "probation.cells = 5: 50 to"),
            ("[probation]\nrejected = 1.5", "probation.rejected = 1.5"),
        ] {
            let error = toml::from_str::<UpdateConfig>(text).unwrap().validate().unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(toml::from_str::<UpdateConfig>("stat = \"x\"").is_err());
    }
}
