//! `cellgate fleet rollout`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use super::broker::{self, Broker};
use super::lines;
use super::offer::Bundle;
use crate::cli::shared;
use crate::clock::{Date, Moment};
use crate::fleet::connection::FleetError;
use crate::fleet::publish::{self, PublishError};
use crate::fleet::reach::{self, Checked};
use crate::fleet::rollout::{Course, Fate, Limit, Step, Tally, Wait, Watch, Waves};
use crate::fleet::view::View;
use crate::outbox::mqtt::MqttConfig;
use crate::update::message::Offer;

/// How often the reports are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often all reports are read again: a broker that is busy may drop what it sends at QoS 0.
const AGAIN: Duration = Duration::from_secs(300);
/// Messages that are taken in before the next look.
const MANY: usize = 10_000;
/// How often it is said how many stations of a wave are good.
const NEWS: Duration = Duration::from_secs(5);

/// Offer a bundle to a group in waves: the next begins when the stations of this one are good, and none does when too many
/// of them refuse it or go back.
///
/// All that it knows is at the broker: it may be stopped and begun again at any time, by the same command, also while the
/// broker is away. Stopped, the offer stays as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    bundle: Bundle,

    /// How many percent of the stations each wave reaches; the last is 100.
    #[arg(long, value_name = "LIST", default_value = "1,10,50,100")]
    waves: Waves,

    /// Minutes for which all stations of a wave must be good before the next begins.
    #[arg(long, value_name = "MINUTES", default_value_t = 30.0, value_parser = minutes)]
    soak: f64,

    /// Minutes in which a station must be good, from when the offer reached it or it came back; one that is not has failed.
    /// Probation counts.
    #[arg(long, value_name = "MINUTES", default_value_t = 240.0, value_parser = minutes)]
    patience: f64,

    /// Stations that may fail, or their share such as 5%; one more halts the rollout.
    #[arg(long, value_name = "N", default_value = "0")]
    max_failures: Limit,

    /// Go on with an offer that was halted.
    #[arg(long)]
    resume: bool,

    /// Print each step as one JSON object a line.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    broker: Broker,
}

fn minutes(text: &str) -> Result<f64, String> {
    let within = |minutes: &f64| (0.0..=100_000.0).contains(minutes);
    text.parse().ok().filter(within).ok_or_else(|| format!("`{text}`: 0 to 100000 minutes are allowed"))
}

/// Why a session ended.
enum End {
    Lost(FleetError),
    Other(anyhow::Error),
}

impl From<FleetError> for End {
    fn from(error: FleetError) -> Self {
        Self::Lost(error)
    }
}

impl From<PublishError> for End {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Fleet(error @ (FleetError::Link(_) | FleetError::Unacknowledged { .. })) => Self::Lost(error),
            // What the broker does not keep now it will not keep later.
            other => Self::Other(other.into()),
        }
    }
}

/// Rolls out.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mqtt = args.broker.settings()?;
    let course = Course {
        waves: args.waves.clone(),
        soak: Duration::from_secs_f64(60.0 * args.soak),
        patience: Duration::from_secs_f64(60.0 * args.patience),
        limit: args.max_failures,
    };
    // In JSON, standard output is for the steps alone.
    let tell = |text: String| if args.json { eprintln!("{text}") } else { println!("{text}") };
    let (bundle, offer) = args.bundle.check(course.waves.first())?;
    tell(lines::bundle(&bundle));
    let (_, view) = broker::read(&mqtt)?;
    let before = view.offer(&args.bundle.group).cloned();
    args.bundle.follows(before.as_ref(), &offer)?;
    let offer = continued(&args, before.as_ref(), offer)?;
    tell(lines::reach(&view, &bundle, &args.bundle.group, &offer));
    if let Some(others) = before.as_ref().filter(|before| before.bundle != offer.bundle) {
        tell(format!("in place of {}", lines::offered(others)));
    }
    if args.bundle.dry_run {
        tell("nothing was sent".into());
        return Ok(());
    }
    let interrupted = shared::interrupt()?;
    if before.as_ref() != Some(&offer) {
        args.bundle.publish(&mqtt, &bundle, before.as_ref(), &offer, &interrupted)?;
    }
    tell(format!("offered to {}: {}", args.bundle.group, lines::offered(&offer)));
    Rollout { watch: watch(&offer), args: &args, mqtt, course, bundle, offer, said: None }.run(&interrupted)
}

/// The offer to begin with: the one at the broker, if it is of this bundle.
fn continued(args: &Args, before: Option<&Offer>, offer: Offer) -> anyhow::Result<Offer> {
    let Some(before) = before.filter(|before| before.bundle == offer.bundle) else { return Ok(offer) };
    if before.halted && !args.resume {
        bail!(
            "this rollout was halted at {} %: see `cellgate fleet status --group {}`, and give --resume to go on, or \
             make a better bundle of a larger version",
            before.percent,
            args.bundle.group
        );
    }
    let (url, chunks) = (offer.url.or(before.url.clone()), offer.chunks || before.chunks);
    // Whoever resumes gives the stations time anew.
    let issued = if before.halted { Date::now() } else { before.issued };
    Ok(Offer { url, chunks, issued, halted: false, ..before.clone() })
}

/// The times of an offer, which is as old as it says, if our clock agrees.
fn watch(offer: &Offer) -> Watch {
    let age = Date::now().as_millis().saturating_sub(offer.issued.as_millis());
    Watch::new(offer.percent, Moment::now() - Duration::from_millis(age))
}

struct Rollout<'a> {
    args: &'a Args,
    mqtt: MqttConfig,
    course: Course,
    bundle: Checked,
    offer: Offer,
    watch: Watch,
    /// What was said last, and when.
    said: Option<(Moment, u8, Tally, Wait)>,
}

impl Rollout<'_> {
    /// Until it is done, halted, or not wanted any more.
    fn run(mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let mut lost_at = None;
        while !interrupted.load(Ordering::SeqCst) {
            match self.session(&mut lost_at, interrupted) {
                Ok(ControlFlow::Break(())) => return Ok(()),
                Ok(ControlFlow::Continue(())) => {}
                Err(End::Other(error)) => return Err(error),
                Err(End::Lost(error)) => {
                    if lost_at.is_none() {
                        self.say("lost", &format!("{error}; trying again"));
                    }
                    lost_at.get_or_insert_with(Moment::now);
                    std::thread::sleep(broker::RETRY);
                }
            }
        }
        bail!("stopped; the offer stays as it is, and the same command goes on")
    }

    /// One connection, for a while; a break when all is done.
    fn session(&mut self, lost_at: &mut Option<Moment>, interrupted: &AtomicBool) -> Result<ControlFlow<()>, End> {
        let (mut listener, mut view) = broker::read(&self.mqtt)?;
        if let Some(lost_at) = lost_at.take() {
            // Without the broker no station could get any farther.
            self.watch.pause(Moment::now().since(lost_at));
        }
        let until = Moment::now() + AGAIN;
        while !interrupted.load(Ordering::SeqCst) && Moment::now() < until {
            // What is there; whoever floods the broker does not keep us from deciding.
            let mut waits = TICK;
            for _ in 0..MANY {
                let Some(heard) = listener.next(waits)? else { break };
                view.take(&heard);
                waits = Duration::ZERO;
            }
            self.still_ours(&view)?;
            if self.step(&mut view)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Others may have changed the offer meanwhile.
    fn still_ours(&mut self, view: &View) -> Result<(), End> {
        let group = &self.args.bundle.group;
        let other = |why: &str| Err(End::Other(anyhow::anyhow!("the offer to {group} was {why}")));
        match view.offer(group) {
            None => other("withdrawn by somebody else"),
            Some(now) if now.bundle != self.offer.bundle => other("replaced by somebody else's"),
            Some(now) if now.halted => other("halted by somebody else; --resume goes on"),
            Some(now) => {
                if now.percent != self.offer.percent {
                    self.watch.raised(now.percent);
                }
                self.offer = now.clone();
                Ok(())
            }
        }
    }

    fn step(&mut self, view: &mut View) -> Result<ControlFlow<()>, End> {
        let fates = reach::fates(view, &self.bundle, &self.args.bundle.group, &self.offer);
        let (tally, step) = self.watch.look(&self.course, fates.map(|(name, _, fate)| (name, fate)), Moment::now());
        match step {
            Step::Hold(wait) => {
                self.say_tally(tally, wait);
                Ok(ControlFlow::Continue(()))
            }
            Step::Raise(percent) => {
                let offer = Offer { percent, issued: Date::now(), ..self.offer.clone() };
                publish::set_offer(&self.mqtt, &self.args.bundle.group, &offer)?;
                view.set_offer(&self.args.bundle.group, &offer);
                self.watch.raised(percent);
                self.offer = offer;
                self.say("raised", &format!("offered to {percent} %"));
                Ok(ControlFlow::Continue(()))
            }
            Step::Halt(why) => {
                let offer = Offer { halted: true, ..self.offer.clone() };
                publish::set_offer(&self.mqtt, &self.args.bundle.group, &offer)?;
                self.blame(view);
                if self.args.json {
                    self.say("halted", &why);
                }
                Err(End::Other(anyhow::anyhow!("halted at {} %: {why}", offer.percent)))
            }
            Step::Done => {
                let later = match tally.away {
                    0 => String::new(),
                    away => format!("; {away} are offline and take it when they are back"),
                };
                self.say("done", &format!("done: {} stations have version {}{later}", tally.good, self.offer.number));
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// Says how far the wave is: at once what matters, the rest now and then.
    fn say_tally(&mut self, tally: Tally, wait: Wait) {
        let (now, percent) = (Moment::now(), self.offer.percent);
        let is_news = self.said.is_none_or(|(at, before, said, waited)| {
            let matters = (before, said.failed, said.silent, waited) != (percent, tally.failed, tally.silent, wait);
            matters || said != tally && now.since(at) >= NEWS
        });
        if !is_news {
            return;
        }
        self.said = Some((now, percent, tally, wait));
        let Tally { good, working, silent, failed, away } = tally;
        let why = match wait {
            Wait::Soak => ", soaking",
            Wait::NobodyThere => ", nobody of this wave is there",
            Wait::Working => "",
        };
        let silent = if silent > 0 { format!("{silent} too slow, ") } else { String::new() };
        let counts = format!("{good} good, {working} on the way, {silent}{failed} failed, {away} offline{why}");
        self.say("wave", &format!("{percent} %: {} stations: {counts}", tally.all()));
    }

    /// Says which stations it failed at, and why.
    fn blame(&self, view: &View) {
        for (name, station, fate) in reach::fates(view, &self.bundle, &self.args.bundle.group, &self.offer) {
            let (Fate::Failed | Fate::Working, Some(report)) = (fate, &station.report) else { continue };
            let number = self.offer.number;
            let why = report.refused.iter().chain(&report.rolled_back).find(|refused| refused.number == number);
            let why = why.map_or(report.last.as_str(), |refused| refused.why.as_str());
            let what = if fate == Fate::Failed { "failed" } else { "not good yet" };
            self.say("station", &format!("{name} {what}: {}, {why}", lines::doing(report)));
        }
    }

    fn say(&self, what: &str, text: &str) {
        let (time, percent) = (Date::now(), self.offer.percent);
        if self.args.json {
            println!("{}", json!({"time": time.to_string(), "what": what, "percent": percent, "text": text}));
        } else {
            println!("{time} {text}");
        }
    }
}
