//! `cellgate fleet offer`, `halt` and `withdraw`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::bail;

use super::broker::{self, Broker};
use super::lines;
use crate::cli::shared;
use crate::clock::Date;
use crate::fleet::publish;
use crate::fleet::reach::{self, Checked};
use crate::fleet::view::View;
use crate::outbox::mqtt::MqttConfig;
use crate::update::message::{CHUNK_BYTES, Offer};

/// A bundle, and how stations come to it.
#[derive(Debug, Clone, clap::Args)]
pub struct Bundle {
    /// The signed bundle.
    #[arg(value_name = "FILE.cgb")]
    file: PathBuf,

    /// The keys that stations trust: the bundle is checked against them first.
    #[arg(long, value_name = "FILE.cgk")]
    keys: PathBuf,

    /// The group of stations that it is offered to.
    #[arg(long, value_name = "NAME")]
    pub group: String,

    /// Where stations can fetch this very file.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Bring the file to the broker, too, in retained messages of 64 KiB.
    #[arg(long)]
    chunks: bool,

    /// Only say whom the offer would reach.
    #[arg(long)]
    pub dry_run: bool,
}

/// Offer a bundle to a part of a group of stations, as it is: who watches over it is you. `rollout` does it by itself.
#[derive(Debug, clap::Args)]
pub struct Offering {
    #[command(flatten)]
    bundle: Bundle,

    /// Stations that are to take it, in percent, by a hash of their names: they stay the same as it grows.
    #[arg(long, value_name = "P", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: u8,

    #[command(flatten)]
    broker: Broker,
}

/// A group of stations.
#[derive(Debug, clap::Args)]
pub struct Group {
    /// The group.
    #[arg(long, value_name = "NAME")]
    group: String,

    #[command(flatten)]
    broker: Broker,
}

/// As stations may call their groups.
fn check_group(group: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=64).contains(&group.len()) || !group.bytes().all(plain) || group.starts_with('.') {
        bail!("--group {group:?}: 1 to 64 letters, digits, -, _ and . are allowed");
    }
    Ok(())
}

impl Bundle {
    /// Checks it, and makes the offer of it.
    pub fn check(&self, percent: u8) -> anyhow::Result<(Checked, Offer)> {
        check_group(&self.group)?;
        if self.url.is_none() && !self.chunks {
            bail!("stations must come to the bundle somehow: give --url, --chunks or both");
        }
        let checked = reach::check(&self.file, &self.keys)?;
        let offer = Offer {
            number: checked.manifest.version,
            bundle: checked.hash,
            bytes: checked.bytes,
            url: self.url.clone(),
            chunks: self.chunks,
            chunk_bytes: CHUNK_BYTES,
            percent,
            salt: String::new(),
            halted: false,
            issued: Date::now(),
        };
        offer.encode()?;
        Ok((checked, offer))
    }

    /// Refuses an offer that stations could not follow after the one before it.
    pub fn follows(&self, before: Option<&Offer>, offer: &Offer) -> anyhow::Result<()> {
        let group = &self.group;
        match before {
            Some(before) if before.number > offer.number => bail!(
                "version {} is offered to {group}, this is {}, and no station goes back by an offer: make a bundle of a \
                 larger version, or `cellgate fleet withdraw --group {group}` first",
                before.number,
                offer.number
            ),
            Some(before) if before.number == offer.number && before.bundle != offer.bundle => bail!(
                "another bundle of version {} is offered to {group} already: make this one with a larger version",
                offer.number
            ),
            _ => Ok(()),
        }
    }

    /// Brings the chunks, if they are wanted and not there, then the offer; and takes the chunks of the offer before away.
    pub fn publish(
        &self,
        mqtt: &MqttConfig,
        bundle: &Checked,
        before: Option<&Offer>,
        offer: &Offer,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<()> {
        let others = before.filter(|before| before.bundle != offer.bundle);
        if offer.chunks && before.is_none_or(|before| others.is_some() || !before.chunks) {
            let bar = shared::bar(offer.bytes, "chunks");
            publish::set_chunks(mqtt, &self.group, bundle, offer, |sent| {
                bar.set_position(sent);
                shared::go_on(interrupted)
            })?;
            bar.finish_and_clear();
        }
        publish::set_offer(mqtt, &self.group, offer)?;
        if let Some(others) = others {
            publish::clear_chunks(mqtt, &self.group, others)?;
        }
        Ok(())
    }
}

/// Offers.
pub fn run(args: Offering) -> anyhow::Result<()> {
    let (mqtt, group) = (args.broker.settings()?, &args.bundle.group);
    let (bundle, offer) = args.bundle.check(args.percent)?;
    let (_, view) = broker::read(&mqtt)?;
    let before = view.offer(group);
    args.bundle.follows(before, &offer)?;
    println!("{}\n{}", lines::bundle(&bundle), lines::reach(&view, &bundle, group, &offer));
    if let Some(others) = before.filter(|before| before.bundle != offer.bundle) {
        println!("in place of {}", lines::offered(others));
    }
    if args.bundle.dry_run {
        println!("nothing was sent");
        return Ok(());
    }
    args.bundle.publish(&mqtt, &bundle, before, &offer, &*shared::interrupt()?)?;
    println!("offered to {group}: {}", lines::offered(&offer));
    Ok(())
}

fn offer_to<'a>(view: &'a View, group: &str) -> anyhow::Result<&'a Offer> {
    view.offer(group).ok_or_else(|| anyhow::anyhow!("nothing is offered to the group {group}"))
}

/// Halts.
pub fn halt(args: Group) -> anyhow::Result<()> {
    check_group(&args.group)?;
    let mqtt = args.broker.settings()?;
    let (_, view) = broker::read(&mqtt)?;
    let offer = Offer { halted: true, ..offer_to(&view, &args.group)?.clone() };
    publish::set_offer(&mqtt, &args.group, &offer)?;
    println!("offered to {}: {}", args.group, lines::offered(&offer));
    Ok(())
}

/// Withdraws.
pub fn withdraw(args: Group) -> anyhow::Result<()> {
    check_group(&args.group)?;
    let bar = shared::bar(0, "chunks");
    let chunks = publish::withdraw(&args.broker.settings()?, &args.group, |so_far| bar.set_position(so_far))?;
    bar.finish_and_clear();
    println!("nothing is offered to {} any more; {chunks} chunks are gone from the broker", args.group);
    Ok(())
}
