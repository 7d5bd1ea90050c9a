//! What the agent hears and says while it works: offers, the report, the end, and the pace of a download.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::link::{Heard, Link};
use super::plan::Plan;
use crate::clock::{Date, Moment};
use crate::update::message::{MAX_REFUSED, MAX_TEXT, Offer, Refused, Report, Shadow, State};
use crate::update::slots::Record;

/// Progress alone is reported so often at most.
const REPORT: Duration = Duration::from_secs(2);

/// See the [module](self).
pub(super) struct Post {
    pub(super) link: Option<Link>,
    pub(super) plan: Plan,
    pub(super) groups: Vec<String>,
    pub(super) report: Report,
    /// What was said last, and when.
    said: Option<(Moment, Report)>,
    stop: Arc<AtomicBool>,
    /// Chunks that have come and were not taken.
    pub(super) chunks: Vec<(String, Vec<u8>)>,
    /// Bytes that the last attempt at a download brought.
    pub(super) gained: u64,
}

/// Chunks that are kept while another one is waited for.
pub(super) const WINDOW: usize = 4;

impl Post {
    pub(super) fn new(link: Option<Link>, plan: Plan, groups: Vec<String>, stop: Arc<AtomicBool>) -> Self {
        let report = Report { groups: groups.clone(), software: env!("CARGO_PKG_VERSION").into(), ..Report::default() };
        Self { link, plan, groups, report, said: None, stop, chunks: Vec::new(), gained: 0 }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Listens for so long, or until a chunk has come.
    pub(super) fn turn(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let step = left.min(Duration::from_millis(200));
            let heard = match &self.link {
                Some(link) => link.hear(step),
                None => {
                    std::thread::sleep(step);
                    None
                }
            };
            let chunk = match heard {
                Some(Heard::Chunk(topic, bytes)) => {
                    if self.chunks.len() < WINDOW && !self.chunks.iter().any(|(known, _)| *known == topic) {
                        self.chunks.push((topic, bytes));
                    }
                    true
                }
                Some(Heard::Offer) | None => false,
            };
            self.hear_offers();
            if chunk || left.is_zero() || self.stopped() {
                return;
            }
        }
    }

    fn hear_offers(&mut self) {
        let Some(link) = &self.link else { return };
        for (group, payload) in link.offers() {
            if payload.is_empty() {
                self.plan.hear(group, None);
                continue;
            }
            match Offer::decode(&payload) {
                Ok(offer) => self.plan.hear(group, Some(offer)),
                // What was offered before holds no more: it was replaced by something.
                Err(error) => {
                    log::warn!("updates: the offer to the group {} is passed over: {error}", self.groups[group]);
                    self.plan.hear(group, None);
                }
            }
        }
    }

    /// Why an update that was offered is to be broken off, if it is.
    pub(super) fn called_off(&self, offer: Option<&Offer>) -> Option<&'static str> {
        if self.stopped() {
            return Some("the station ends");
        }
        offer.and_then(|offer| self.plan.called_off(offer))
    }

    /// Takes over what the record says.
    pub(super) fn read(&mut self, record: &Record, model: String) {
        let in_force = record.in_force().map(|(_, fitted)| fitted);
        let report = &mut self.report;
        report.number = in_force.map_or(0, |fitted| fitted.version);
        (report.file, report.model) = (in_force.map(|fitted| fitted.hash), model);
        report.last.clone_from(&record.last);
        let said = |number, why: &str| Refused { number, why: why.chars().take(MAX_TEXT).collect() };
        let (back, never): (Vec<_>, Vec<_>) = record.refused.iter().partition(|refusal| refusal.was_in_force);
        report.rolled_back = back.last().map(|refusal| said(refusal.version, &refusal.why));
        report.refused = never.iter().map(|refusal| said(refusal.version, &refusal.why)).collect();
        report.refused.extend(self.plan.refusals().map(|(number, why)| said(number, why)));
        let surplus = report.refused.len().saturating_sub(MAX_REFUSED);
        report.refused.drain(..surplus);
    }

    /// Which offer the report is about.
    pub(super) fn about(&mut self, offer: Option<&Offer>) {
        self.report.offered = offer.map(|offer| offer.number);
        self.report.bundle = offer.map(|offer| offer.bundle);
    }

    pub(super) fn shadow(&mut self, shadow: Shadow) {
        self.report.shadow = Some(shadow);
    }

    /// Says where the update is. What was said before is not said again, and progress alone only now and then.
    pub(super) fn say(&mut self, state: State, progress: Option<f32>, last: Option<&str>) {
        (self.report.state, self.report.progress) = (state, progress);
        if let Some(last) = last {
            self.report.last = last.chars().take(MAX_TEXT).collect();
        }
        let now = Moment::now();
        let is_news = self.said.as_ref().is_none_or(|(at, said)| {
            let Report { progress, shadow, .. } = *said;
            let same_but_progress = Report { progress, shadow, ..self.report.clone() } == *said;
            !same_but_progress || self.report != *said && (progress.is_none() || now.since(*at) >= REPORT)
        });
        if is_news {
            self.report.time = Date::now();
            if let Some(link) = &self.link {
                link.report(self.report.encode());
            }
            self.said = Some((now, self.report.clone()));
        }
    }
}
