//! `cellgate bundle`: keys, and signed bundles that bring a model to stations.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use super::inspect::batch::Batch;
use super::shared::{self, Engine};
use crate::clock::Date;
use crate::frame::{DecodeLimits, Frame};
use crate::hidden::shown;
use crate::model::Model;
use crate::update::bundle::{
    self, Envelope, Hash, KEY_SET_MAGIC, KeySet, Layout, MAGIC, MAX_NOTE, Manifest, Part, PublicKey, SecretKey,
    Software, Targets, assemble, pack_model, pack_whole,
};
use crate::update::prove::{self, Answer, Golden};

const DAY: u64 = 86_400_000;

/// Make, sign and check bundles that bring a model to stations, and the keys for them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: two of three people must sign
  cellgate bundle keygen anna            and so on: anna.key stays with Anna, anna.pub is for all
  cellgate bundle keys anna.pub ben.pub cleo.pub --threshold 2 -o keys.cgk
  cellgate bundle sign keys.cgk --key anna.key
  cellgate bundle sign keys.cgk --key ben.key
  cellgate bundle create line1.cgm --number 7 --golden golden/ -o line1-7.cgb
  cellgate bundle sign line1-7.cgb --key anna.key
  cellgate bundle sign line1-7.cgb --key ben.key
  cellgate bundle verify line1-7.cgb --keys keys.cgk
  cellgate update install line1-7.cgb    at the station")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key: NAME.key, which signs and must stay secret, and NAME.pub.
    Keygen {
        /// The files' name.
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
    /// Make a set of keys, to be signed by them and, unless it is the first, by the keys of the set before it.
    Keys {
        /// The public keys.
        #[arg(value_name = "KEY.pub", required = true)]
        keys: Vec<PathBuf>,

        /// How many of them must sign.
        #[arg(long, value_name = "N")]
        threshold: u8,

        /// The set's number: 1 for the first, one more for each next.
        #[arg(long, value_name = "N", default_value_t = 1)]
        number: u64,

        /// The key set to write.
        #[arg(short, long, value_name = "FILE.cgk")]
        out: PathBuf,
    },
    /// Make a bundle of a model, not yet signed.
    Create(Box<Create>),
    /// Add a signature to a bundle or a key set.
    Sign {
        /// The file; it is replaced.
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// The secret key.
        #[arg(long, value_name = "NAME.key")]
        key: PathBuf,
    },
    /// Check a bundle to the last bit: signatures, sizes and hashes.
    Verify {
        /// The bundle.
        #[arg(value_name = "FILE.cgb")]
        file: PathBuf,

        /// The keys that are trusted.
        #[arg(long, value_name = "FILE.cgk")]
        keys: PathBuf,
    },
    /// Say what a bundle or a key set holds, and by whom it is signed. Nothing is checked.
    Show {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Say how two models differ, and what it takes to send the new one to stations that have the old one.
    Diff {
        /// The model that stations have.
        #[arg(value_name = "OLD.cgm")]
        old: PathBuf,

        /// The model that they shall have.
        #[arg(value_name = "NEW.cgm")]
        new: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The model.
    #[arg(value_name = "MODEL.cgm")]
    model: PathBuf,

    /// The bundle's version; a station takes only larger ones than it has had.
    #[arg(long, value_name = "N")]
    number: u64,

    /// Up to 64 images by which the model is proven at the station: it must give them the same class and score as here. Take
    /// good and defective cells, none near a border between classes.
    #[arg(long, value_name = "IMAGE|DIR|LIST", required = true)]
    golden: Vec<PathBuf>,

    /// The model that stations have: what is sent is the difference.
    #[arg(long, value_name = "BASE.cgm")]
    base: Option<PathBuf>,

    /// A text for the people at the line.
    #[arg(long, value_name = "FILE")]
    note: Option<PathBuf>,

    /// Days until it expires.
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3650))]
    expires: u64,

    /// A line that it is for [default: any]; may be given again.
    #[arg(long, value_name = "NAME")]
    line: Vec<String>,

    /// A station that it is for [default: any]; may be given again.
    #[arg(long, value_name = "NAME")]
    station: Vec<String>,

    /// A group of stations that it is for [default: any]; may be given again.
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,

    /// The oldest cellgate that it is for [default: this one].
    #[arg(long, value_name = "X.Y.Z")]
    minimum_software: Option<Software>,

    /// The bundle to write.
    #[arg(short, long, value_name = "FILE.cgb")]
    out: PathBuf,

    #[command(flatten)]
    engine: Engine,
}

/// Works on bundles.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Keygen { name } => keygen(&name),
        Action::Keys { keys, threshold, number, out } => key_set(&keys, threshold, number, &out),
        Action::Create(args) => create(*args),
        Action::Sign { file, key } => sign(&file, &key),
        Action::Verify { file, keys } => verify(&file, &keys),
        Action::Show { file, json } => show(&file, json),
        Action::Diff { old, new } => diff(&old, &new),
    }
}

fn keygen(name: &Path) -> anyhow::Result<()> {
    let mut seed = [0; 32];
    let source = "/dev/urandom";
    File::open(source)
        .and_then(|mut random| random.read_exact(&mut seed))
        .with_context(|| format!("reading {source}"))?;
    let key = SecretKey::from_seed(&seed);
    let with = |suffix: &str| {
        let mut file = name.as_os_str().to_owned();
        file.push(suffix);
        PathBuf::from(file)
    };
    let (secret, public) = (with(".key"), with(".pub"));
    let mut options = File::options();
    // A key that exists is never overwritten: whatever it signed could not be followed any more.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&secret).with_context(|| format!("making {}", secret.display()))?;
    file.write_all(key.to_text().as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", secret.display()))?;
    shared::save(&public, format!("{}\n", key.public()).as_bytes())?;
    println!("{}: keep it secret and apart from stations", secret.display());
    println!("{}: {}", public.display(), key.public());
    Ok(())
}

fn key_set(files: &[PathBuf], threshold: u8, version: u64, out: &Path) -> anyhow::Result<()> {
    shared::check_writable(out)?;
    let read = |path: &PathBuf| -> anyhow::Result<PublicKey> {
        text(path, 1024)?.parse().with_context(|| format!("reading the public key {}", path.display()))
    };
    let keys = files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let set = KeySet { version, threshold, keys };
    shared::save(out, &set.to_envelope()?.to_bytes()?)?;
    println!("{}: key set {version}, {threshold} of {} must sign; sign it now", out.display(), set.keys.len());
    Ok(())
}

/// A short text file.
fn text(path: &Path, most: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(most + 1).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
    if text.len() as u64 > most {
        bail!("{} is longer than {most} bytes", path.display());
    }
    Ok(text)
}

fn places(model: &Model) -> Vec<(String, usize, usize)> {
    model.places().map(|(name, start, length)| (name.to_owned(), start, length)).collect()
}

fn packed(new: &Model, base: Option<&Model>) -> Part {
    let (sections, others) = (places(new), base.map(places).unwrap_or_default());
    let base = base.map(|base| Layout { bytes: base.file(), sections: &others });
    pack_model(Layout { bytes: new.file(), sections: &sections }, base)
}

fn create(args: Create) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let model = Arc::new(Model::open(&args.model)?);
    let base = args.base.as_deref().map(Model::open).transpose()?;
    let (network, _) = args.engine.weights()?;
    let mut batch = Batch::new(&model, &network, args.engine.threads(), 1)?;
    let inspector = batch.inspector();
    let mut frames = Vec::new();
    for item in super::inspect::batch::gather(&args.golden)? {
        if frames.len() == prove::MAX_FRAMES {
            bail!("--golden gives more than {} images: choose some", prove::MAX_FRAMES);
        }
        let frame = Frame::decode_file(&item.path, &DecodeLimits::default())?;
        inspector.make_room(frame.width(), frame.height())?;
        let expected = Answer::of(&inspector.inspect(&frame));
        println!("golden       {}: {}", item.id, expected.says);
        frames.push(Golden { name: item.id, frame, expected });
    }
    let golden = prove::encode(&frames).context("packing the golden frames")?;
    let mut parts = vec![packed(&model, base.as_ref()), pack_whole("golden", &golden)];
    if let Some(note) = &args.note {
        parts.push(pack_whole("note", text(note, MAX_NOTE)?.as_bytes()));
    }
    let created = Date::now().as_millis();
    let targets = Targets {
        lines: args.line,
        stations: args.station,
        groups: args.group,
        minimum_software: args.minimum_software.unwrap_or_else(Software::own),
    };
    let manifest = Manifest {
        product: bundle::PRODUCT.into(),
        version: args.number,
        backbone: model.header().backbone.0,
        targets,
        created,
        expires: created + args.expires * DAY,
        base: base.as_ref().map(|base| Hash::of(base.file())),
        sections: Vec::new(),
    };
    let (envelope, body) = assemble(manifest, parts)?;
    let bytes = [envelope.to_bytes()?, body].concat();
    shared::save(&args.out, &bytes)?;
    println!("{}: version {}, {:.3} MB, not signed yet", args.out.display(), args.number, bytes.len() as f64 / 1e6);
    Ok(())
}

/// A bundle or a key set, and what follows the envelope.
fn open(path: &Path) -> anyhow::Result<([u8; 8], Envelope, BufReader<File>)> {
    let context = || format!("opening {}", path.display());
    let mut magic = [0; 8];
    // A file that is shorter is of neither kind, which the envelope says.
    let _ = File::open(path).with_context(context)?.read_exact(&mut magic);
    if magic != KEY_SET_MAGIC {
        magic = MAGIC;
    }
    let mut reader = BufReader::new(File::open(path).with_context(context)?);
    let envelope = Envelope::read(magic, &mut reader).with_context(context)?;
    Ok((magic, envelope, reader))
}

fn sign(path: &Path, key: &Path) -> anyhow::Result<()> {
    let secret =
        SecretKey::from_text(&text(key, 1024)?).with_context(|| format!("reading the secret key {}", key.display()))?;
    let (magic, mut envelope, mut rest) = open(path)?;
    // One does not sign what no station would read.
    if magic == KEY_SET_MAGIC {
        KeySet::peek(&envelope)?;
    } else {
        let manifest = Manifest::read(&envelope)?;
        // Stations take the time of a signed manifest for granted, for good: each signer looks at the own clock.
        if manifest.created > Date::now().as_millis() + DAY {
            bail!(
                "{} was made at {}, which is yet to come: set the clocks right and make it again",
                path.display(),
                Date::from_millis(manifest.created)
            );
        }
        let mut body = Vec::new();
        let mut keep = |bytes: &[u8]| {
            body.extend_from_slice(bytes);
            Ok(())
        };
        bundle::sections(&mut rest, &manifest, &mut keep)?;
        envelope.sign(&secret);
        shared::save(path, &[envelope.to_bytes()?, body].concat())?;
        println!("{}: {} signature(s)", path.display(), envelope.signatures.len());
        return Ok(());
    }
    envelope.sign(&secret);
    shared::save(path, &envelope.to_bytes()?)?;
    println!("{}: {} signature(s)", path.display(), envelope.signatures.len());
    Ok(())
}

fn verify(path: &Path, keys: &Path) -> anyhow::Result<()> {
    let context = || format!("checking {}", path.display());
    let mut file = File::open(keys).with_context(|| format!("opening {}", keys.display()))?;
    let (keys, _) = KeySet::trust(&mut file).with_context(|| format!("checking the key set {}", keys.display()))?;
    let mut reader = BufReader::new(File::open(path).with_context(context)?);
    let manifest = bundle::receive(&mut reader, &keys, |_| Ok(()), &mut |_| Ok(())).with_context(context)?;
    if Date::now().as_millis() >= manifest.expires {
        bail!("{} is signed and whole, but expired at {}", path.display(), Date::from_millis(manifest.expires));
    }
    println!(
        "{}: version {}, signed by {} or more of key set {}, every byte checked",
        path.display(),
        manifest.version,
        keys.threshold,
        keys.version
    );
    Ok(())
}

fn show(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let (magic, envelope, mut rest) = open(path)?;
    let signed: Vec<String> = envelope.signatures.iter().map(|signature| signature.key.to_string()).collect();
    if magic == KEY_SET_MAGIC {
        let set = KeySet::peek(&envelope)?;
        let keys: Vec<String> = set.keys.iter().map(PublicKey::to_string).collect();
        if as_json {
            println!(
                "{}",
                json!({"key-set": set.version, "threshold": set.threshold, "keys": keys, "signed-by": signed})
            );
            return Ok(());
        }
        println!("key set      {}: {} of {} must sign", set.version, set.threshold, keys.len());
        keys.iter().for_each(|key| println!("key          {key}"));
    } else {
        let manifest = Manifest::read(&envelope)?;
        if as_json {
            let sections: Vec<_> = manifest
                .sections
                .iter()
                .map(|s| json!({"name": s.name, "bytes": s.bytes, "stored": s.stored, "hash": s.hash.to_string()}))
                .collect();
            let t = &manifest.targets;
            println!(
                "{}",
                json!({
                    "version": manifest.version, "backbone": Hash(manifest.backbone).to_string(),
                    "created": Date::from_millis(manifest.created).to_string(),
                    "expires": Date::from_millis(manifest.expires).to_string(),
                    "base": manifest.base.map(|base| base.to_string()),
                    "lines": t.lines, "stations": t.stations, "groups": t.groups,
                    "minimum-software": t.minimum_software.to_string(), "sections": sections, "signed-by": signed,
                })
            );
            return Ok(());
        }
        show_manifest(&manifest);
        if let Some(note) = note(&manifest, &mut rest)? {
            note.lines().for_each(|line| println!("note         {}", line.chars().map(shown).collect::<String>()));
        }
    }
    signed.iter().for_each(|key| println!("signed by    {key} (not checked)"));
    Ok(())
}

fn show_manifest(manifest: &Manifest) {
    println!("version      {}", manifest.version);
    println!("backbone     {}", Hash(manifest.backbone));
    println!("created      {}", Date::from_millis(manifest.created));
    println!("expires      {}", Date::from_millis(manifest.expires));
    match manifest.base {
        Some(base) => println!("difference   to the model file {base}"),
        None => println!("difference   to none: it is whole"),
    }
    let any = |names: &[String]| if names.is_empty() { "any".to_owned() } else { names.join(", ") };
    let targets = &manifest.targets;
    println!("line         {}", any(&targets.lines));
    println!("station      {}", any(&targets.stations));
    println!("group        {}", any(&targets.groups));
    println!("cellgate     {} or later", targets.minimum_software);
    for section in &manifest.sections {
        let (stored, bytes) = (section.stored as f64 / 1e6, section.bytes as f64 / 1e6);
        println!("section      {:<10} {stored:>10.3} MB, unpacked {bytes:.3} MB", section.name);
    }
}

fn note(manifest: &Manifest, rest: &mut impl Read) -> anyhow::Result<Option<String>> {
    let Some(section) = manifest.section("note") else {
        return Ok(None);
    };
    let before: u64 = manifest.sections.iter().map(|other| other.stored).sum::<u64>() - section.stored;
    std::io::copy(&mut rest.by_ref().take(before), &mut std::io::sink())?;
    let mut text = Vec::new();
    let mut keep = |bytes: &[u8]| {
        text.extend_from_slice(bytes);
        Ok(())
    };
    let mut no_base = |_: u64, _: &mut [u8]| Err(std::io::ErrorKind::NotFound.into());
    bundle::unpack(&mut rest.take(section.stored), section, &mut no_base, &mut keep)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn diff(old: &Path, new: &Path) -> anyhow::Result<()> {
    let (old, new) = (Model::open(old)?, Model::open(new)?);
    if old.header().backbone != new.header().backbone {
        println!("backbone     another: {:.12} and {:.12}", old.header().backbone, new.header().backbone);
    }
    let others = places(&old);
    for (name, start, length) in places(&new) {
        let bytes = &new.file()[start..start + length];
        match others.iter().find(|(other, ..)| *other == name) {
            None => println!("section      {name:<10} is new"),
            Some((_, _, other)) if *other != length => println!("section      {name:<10} has another length"),
            Some((_, at, _)) => {
                let differ = bytes.iter().zip(&old.file()[*at..]).filter(|(a, b)| a != b).count();
                println!("section      {name:<10} {differ} of {length} bytes differ");
            }
        }
    }
    let (whole, difference) = (packed(&new, None).packed.len(), packed(&new, Some(&old)).packed.len());
    let share = 100.0 * difference as f64 / whole.max(1) as f64;
    println!("whole        {:.3} MB of {:.3} MB", whole as f64 / 1e6, new.bytes() as f64 / 1e6);
    println!("difference   {:.3} MB, {share:.1} % of that", difference as f64 / 1e6);
    Ok(())
}
