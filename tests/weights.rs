//! Weights files of every format: what is read, what is refused and how, and what damage may cost.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::sync::LazyLock;

use cellgate::backbone::onnx::export_onnx;
use cellgate::backbone::weights::safetensors::{About, write};
use cellgate::backbone::weights::{Loaded, Origin, Precision, ResNet18, WeightsError, architecture};
use zip::write::SimpleFileOptions;

/// Counts what each thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // try_with: a thread may free after its locals are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns the most bytes that it held beyond those held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

type Tensors = BTreeMap<String, Tensor>;

/// A repeatable stream of numbers from 0 to 1.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32
    }
}

/// A whole torchvision state dict, head included, of numbers that BF16 holds exactly.
fn torchvision() -> Tensors {
    let mut stream = Stream(7);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], low: f32, high: f32| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| half::bf16::from_f32(low + (high - low) * stream.unit()).to_f32()).collect();
        tensors.insert(name, Tensor { shape: shape.to_vec(), values });
    };
    for conv in architecture() {
        let (weight, norm) = match conv.name.strip_suffix(".downsample") {
            Some(prefix) => (format!("{prefix}.downsample.0"), format!("{prefix}.downsample.1")),
            None => (conv.name.clone(), conv.name.replace("conv", "bn")),
        };
        let inputs = if conv.name == "conv1" { 3 } else { conv.inputs };
        add(format!("{weight}.weight"), &[conv.outputs, inputs, conv.kernel, conv.kernel], -0.1, 0.1);
        add(format!("{norm}.weight"), &[conv.outputs], 0.5, 1.5);
        add(format!("{norm}.bias"), &[conv.outputs], -0.5, 0.5);
        add(format!("{norm}.running_mean"), &[conv.outputs], -0.5, 0.5);
        add(format!("{norm}.running_var"), &[conv.outputs], 0.1, 1.0);
    }
    add("fc.weight".into(), &[10, 512], -0.1, 0.1);
    add("fc.bias".into(), &[10], -0.1, 0.1);
    tensors
}

fn bytes_of(values: &[f32], dtype: &str) -> Vec<u8> {
    match dtype {
        "F32" => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        "F16" => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        _ => unreachable!(),
    }
}

fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn as_safetensors(tensors: &Tensors, dtype: &str) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(bytes_of(&tensor.values, dtype));
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let begin = data.len();
    data.extend([0; 8]);
    let entry = serde_json::json!({"dtype": "I64", "shape": [], "data_offsets": [begin, data.len()]});
    header.insert("bn1.num_batches_tracked".into(), entry);
    safetensors_file(&serde_json::Value::Object(header).to_string(), &data)
}

/// Opcodes as `torch.save` writes them.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    fn int(&mut self, value: usize) -> &mut Self {
        self.raw(b"J").raw(&(value as i32).to_le_bytes())
    }

    fn ints(&mut self, values: &[usize]) -> &mut Self {
        self.raw(b"(");
        values.iter().for_each(|&v| _ = self.int(v));
        self.raw(b"t")
    }

    fn tensor(&mut self, storage: &str, key: &str, len: usize, shape: &[usize], strides: &[usize]) -> &mut Self {
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((").text("storage");
        self.raw(format!("ctorch\n{storage}\n").as_bytes()).text(key).text("cpu").int(len).raw(b"tQ");
        self.int(0).ints(shape).ints(strides).raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect()
}

#[derive(Clone, Copy, Default)]
struct Pth {
    big_endian: bool,
    /// Channels last, as `model.to(memory_format=torch.channels_last)` leaves the weights.
    channels_last: bool,
    deflated: bool,
    zip64: bool,
}

fn as_pth(tensors: &Tensors, how: Pth) -> Vec<u8> {
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(");
    let mut storages = Vec::new();
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        let (mut values, mut steps) = (tensor.values.clone(), strides(&tensor.shape));
        if let (true, &[o, i, h, w]) = (how.channels_last, tensor.shape.as_slice()) {
            steps = vec![i * h * w, 1, w * i, i];
            for (from, &value) in tensor.values.iter().enumerate() {
                let (n, c, p) = (from / (i * h * w) % o, from / (h * w) % i, from % (h * w));
                values[(n * h * w + p) * i + c] = value;
            }
        }
        pickle.text(name).tensor("FloatStorage", &key.to_string(), values.len(), &tensor.shape, &steps);
        storages
            .push(values.iter().flat_map(|v| if how.big_endian { v.to_be_bytes() } else { v.to_le_bytes() }).collect());
    }
    // The version record that torch sets as the dictionary's state.
    pickle.raw(b"u}").text("_metadata").raw(b"}sb.");
    zipped(&pickle.0, if how.big_endian { "big" } else { "little" }, &storages, how)
}

fn zipped(pickle: &[u8], order: &str, storages: &[Vec<u8>], how: Pth) -> Vec<u8> {
    let method = if how.deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    let options = SimpleFileOptions::default().compression_method(method).large_file(how.zip64);
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: String, bytes: &[u8]| {
        archive.start_file(name, options).unwrap();
        archive.write_all(bytes).unwrap();
    };
    add("resnet/data.pkl".into(), pickle);
    add("resnet/byteorder".into(), order.as_bytes());
    storages.iter().enumerate().for_each(|(key, bytes)| add(format!("resnet/data/{key}"), bytes));
    archive.finish().unwrap().into_inner()
}

static TENSORS: LazyLock<Tensors> = LazyLock::new(torchvision);
static NETWORK: LazyLock<ResNet18> = LazyLock::new(|| Loaded::parse(&as_safetensors(&TENSORS, "F32")).unwrap().network);

fn refusal(bytes: &[u8]) -> String {
    Loaded::parse(bytes).unwrap_err().to_string()
}

#[track_caller]
fn assert_refused(bytes: &[u8], says: &[&str]) {
    let text = refusal(bytes);
    says.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not say {part:?}"));
}

#[test]
fn every_way_to_store_a_state_dict_gives_the_same_network() {
    let identity = NETWORK.identity();
    let read = |bytes: &[u8]| Loaded::parse(bytes).unwrap();
    assert_eq!(read(&as_safetensors(&TENSORS, "BF16")).network.identity(), identity);
    for how in [
        Pth::default(),
        Pth { big_endian: true, ..Pth::default() },
        Pth { channels_last: true, ..Pth::default() },
        Pth { deflated: true, ..Pth::default() },
        Pth { zip64: true, ..Pth::default() },
    ] {
        let loaded = read(&as_pth(&TENSORS, how));
        assert_eq!((loaded.origin, loaded.network.identity()), (Origin::TorchvisionPth, identity));
    }
    let onnx = export_onnx(&NETWORK, 64, Precision::F32).unwrap();
    let loaded = read(&onnx);
    assert_eq!((loaded.origin, &loaded.network), (Origin::Onnx, &*NETWORK));
}

#[test]
fn our_own_file_comes_back_bit_for_bit() {
    let about = About { name: "a name".into(), provenance: "from \"somewhere\"\n".into() };
    for precision in [Precision::F16, Precision::F32] {
        let (bytes, held) = write(&NETWORK, precision, &about).unwrap();
        let loaded = Loaded::parse(&bytes).unwrap();
        assert_eq!((&loaded.network, &loaded.about, loaded.precision), (&held, &about, Some(precision)));
        assert_eq!(write(&NETWORK, precision, &about).unwrap().0, bytes);
        // A second time through FP16 changes nothing more.
        assert_eq!(write(&held, precision, &about).unwrap().0, bytes);
    }
    let (_, held) = write(&NETWORK, Precision::F32, &about).unwrap();
    assert_eq!(held, *NETWORK);
}

#[test]
fn a_flipped_bit_in_our_own_weights_is_found() {
    let (mut bytes, _) = write(&NETWORK, Precision::F16, &About::default()).unwrap();
    let end = bytes.len();
    for at in [end / 3, end / 2, end - 1] {
        bytes[at] ^= 1;
        let error = Loaded::parse(&bytes).unwrap_err();
        assert!(matches!(error, WeightsError::IdentityMismatch { .. }), "{error}");
        bytes[at] ^= 1;
    }
    assert!(Loaded::parse(&bytes).is_ok());
}

#[test]
fn wrong_tensors_are_named() {
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = torchvision();
        change(&mut tensors);
        as_safetensors(&tensors, "F32")
    };
    assert_refused(&changed(&|t| _ = t.remove("layer3.0.bn2.running_var")), &["missing", "layer3.0.bn2.running_var"]);
    let extra = || Tensor { shape: vec![1], values: vec![0.0] };
    assert_refused(&changed(&|t| _ = t.insert("layer1.0.conv3.weight".into(), extra())), &["layer1.0.conv3.weight"]);
    let shape = &changed(&|t| t.get_mut("layer1.1.conv1.weight").unwrap().shape = vec![64, 64, 9]);
    assert_refused(shape, &["layer1.1.conv1.weight", "[64, 64, 9]", "[64, 64, 3, 3]"]);
    let two = &changed(&|t| {
        let conv1 = t.get_mut("conv1.weight").unwrap();
        (conv1.shape[1], conv1.values) = (2, vec![0.0; 64 * 2 * 49]);
    });
    assert_refused(two, &["conv1.weight", "[64, 2, 7, 7]"]);
    assert_refused(
        &changed(&|t| t.get_mut("bn1.running_var").unwrap().values[3] = -1.0),
        &["bn1.running_var", "index 3"],
    );
}

#[test]
fn nan_and_infinity_are_named_in_every_format() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut tensors = torchvision();
        tensors.get_mut("layer4.1.conv2.weight").unwrap().values[70_000] = value;
        for bytes in [as_safetensors(&tensors, "F32"), as_pth(&tensors, Pth::default())] {
            assert_refused(&bytes, &["layer4.1.conv2.weight", "index 70000", "finite"]);
        }
    }
    let mut onnx = export_onnx(&NETWORK, 64, Precision::F32).unwrap();
    let weight = &NETWORK.convs()[4].weight;
    let bytes: Vec<u8> = weight[..8].iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = onnx.windows(bytes.len()).position(|window| window == bytes).unwrap();
    onnx[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_refused(&onnx, &["layer1.1.conv2", "NaN", "index 0"]);

    let mut convs = NETWORK.convs().to_vec();
    convs[2].bias[5] = f32::NEG_INFINITY;
    assert!(ResNet18::from_convs(convs).unwrap_err().to_string().contains("layer1.0.conv2.bias"));
}

#[test]
fn convolutions_out_of_order_or_shape_are_refused() {
    let changed = |change: &dyn Fn(&mut Vec<_>)| {
        let mut convs = NETWORK.convs().to_vec();
        change(&mut convs);
        ResNet18::from_convs(convs).unwrap_err().to_string()
    };
    assert!(changed(&|c| c.swap(1, 2)).contains("layer1.0.conv1"));
    assert!(changed(&|c| _ = c.pop()).contains("missing layer4.1.conv2"));
    assert!(changed(&|c| c.push(c[0].clone())).contains("conv1"));
    assert!(changed(&|c| c[5].stride = 1).contains("stride"));
    assert!(changed(&|c| _ = c[3].weight.pop()).contains("layer1.1.conv1.weight"));
    let mut convs = NETWORK.convs().to_vec();
    convs[0].weight[0] = 1e5;
    let wide = ResNet18::from_convs(convs).unwrap();
    assert_ne!(wide.identity(), NETWORK.identity());
    let text = write(&wide, Precision::F16, &About::default()).unwrap_err().to_string();
    assert!(text.contains("conv1.weight") && text.contains("--fp32"), "{text}");
}

#[test]
fn lying_safetensors_headers_are_refused() {
    let one = |entry: &str| safetensors_file(&format!("{{\"a\":{entry}}}"), &[0; 16]);
    let two = |b: &str| {
        let a = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        safetensors_file(&format!(r#"{{"a":{a},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#), &[0; 16])
    };
    assert_refused(&one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,4096]}"#), &["a lies", "truncated"]);
    assert_refused(&one(r#"{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#), &["a lies"]);
    assert_refused(&one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]}"#), &["a lies"]);
    assert_refused(&one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,16]}"#), &["does not fill"]);
    let huge = r#"{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,16]}"#;
    assert_refused(&one(huge), &["does not fill"]);
    assert_refused(&one(r#"{"dtype":"F33","shape":[4],"data_offsets":[0,16]}"#), &["unknown type F33"]);
    assert_refused(&one(r#"{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}"#), &["not understood"]);
    assert_refused(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), &["end at byte 8"]);
    assert_refused(&two("[4,12]"), &["b overlaps"]);
    assert_refused(&two("[0,8]"), &["overlaps"]);
    assert_refused(&safetensors_file(r#"{"a":{},"a":{}}"#, &[]), &["not understood"]);
    let entry = r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#;
    assert_refused(&safetensors_file(&format!(r#"{{"a":{entry},"a":{entry}}}"#), &[0; 16]), &["a comes twice"]);
    assert_refused(&safetensors_file(&"{\"a\":".repeat(5000), &[]), &["not understood"]);
    let mut long = safetensors_file("{}", &[]);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_refused(&long, &["claims 18446744073709551615 bytes"]);
    long[..8].copy_from_slice(&1000u64.to_le_bytes());
    assert_refused(&long, &["claims 1000 bytes", "truncated"]);
    let later = r#"{"__metadata__":{"format":"cellgate-backbone-9"}}"#;
    assert_refused(&safetensors_file(later, &[]), &["cellgate-backbone-9", "update cellgate"]);
    assert_refused(b"", &["it is empty"]);
    assert_refused(b"\x89PNG\r\n\x1a\n", &["89504e47"]);
}

#[test]
fn pickles_that_want_more_than_tensors_are_refused() {
    let pth = |pickle: &[u8]| zipped(pickle, "little", &[vec![0; 64]], Pth::default());
    assert_refused(&pth(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."), &["os.system", "safety"]);
    assert_refused(&pth(b"\x80\x02c__builtin__\neval\n."), &["__builtin__.eval", "safety"]);
    // INST, OBJ, NEWOBJ, EXT1, STACK_GLOBAL.
    for opcode in [&b"i"[..], b"o", b"\x81", b"\x82\x01", b"\x93"] {
        assert_refused(&pth(&[b"\x80\x02", opcode, b"."].concat()), &["opcode", "safety"]);
    }
    assert_refused(&pth(b"\x80\x04."), &["protocol 4", "pickle_protocol=2"]);
    assert_refused(&pth(b"\x80\x02K\x01."), &["an int", "state_dict()"]);
    assert_refused(&pth(b"\x80\x02}."), &["no state dict"]);
    assert_refused(&pth(b"\x80\x02}R."), &["empty stack"]);
    assert_refused(&pth(b"\x80\x02h\x07."), &["recalls object 7"]);
    assert_refused(&pth(b"\x80\x02(((t"), &["truncated"]);
    assert_refused(&pth(b"\x80\x02X\xff\xff\xff\xff."), &["truncated"]);
    assert_refused(&pth(b"\x80\x02ccollections\nOrderedDict\nK\x01R."), &["an int"]);
    assert_refused(&pth(b"\x80\x02ctorch\nFloatStorage\n)R."), &["storage type"]);
    // A dict that holds itself, and a hundred thousand nested tuples.
    assert_refused(&pth(b"\x80\x02}q\x00h\x00h\x00s."), &["no state dict"]);
    assert_refused(&pth(&[&b"\x80\x02)"[..], &b"\x85".repeat(100_000), b"."].concat()), &["a tuple"]);

    let tensor = |len: usize, shape: &[usize], strides: &[usize]| {
        let mut pickle = Pickle::default();
        pickle.raw(b"\x80\x02}").text("conv1.weight").tensor("FloatStorage", "0", len, shape, strides).raw(b"s.");
        pth(&pickle.0)
    };
    assert_refused(&tensor(16, &[17], &[1]), &["conv1.weight reaches beyond"]);
    assert_refused(&tensor(16, &[4, 4], &[5, 1]), &["conv1.weight reaches beyond"]);
    assert_refused(&tensor(16, &[1 << 30, 1 << 30], &[0, 0]), &["conv1.weight reaches beyond"]);
    assert_refused(&tensor(16, &[4, 4], &[4, 1]), &["missing"]);

    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    assert_refused(legacy, &["before 1.6", "save it again"]);
}

#[test]
fn archives_that_unpack_to_more_than_they_may_are_refused() {
    let deflated = Pth { deflated: true, ..Pth::default() };
    let bomb = zipped(&vec![b'N'; 64 << 20], "little", &[], deflated);
    let (text, peak) = peak_of(|| refusal(&bomb));
    assert!(text.contains("data.pkl") && text.contains("expected at most"), "{text}");
    assert!(peak < 8 << 20, "{peak} bytes");

    // Every other tensor as it should be, but conv1's storage unpacks to 64 MB.
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02}(");
    let mut storages = vec![vec![0; 64 << 20]];
    for (name, tensor) in &*TENSORS {
        let key = if name == "conv1.weight" { 0 } else { storages.len() };
        if key > 0 {
            storages.push(bytes_of(&tensor.values, "F32"));
        }
        let steps = strides(&tensor.shape);
        pickle.text(name).tensor("FloatStorage", &key.to_string(), tensor.values.len(), &tensor.shape, &steps);
    }
    let bomb = zipped(pickle.raw(b"u.").0.as_slice(), "little", &storages, deflated);
    let (text, peak) = peak_of(|| refusal(&bomb));
    assert!(text.contains("data/0") && text.contains("claims 67108864 bytes"), "{text}");
    assert!(peak < 8 << 20, "{peak} bytes");

    // The directory lies about the size: what comes out counts.
    let small = zipped(&vec![b'N'; 64 << 20], "little", &[], deflated);
    let claimed = (64u32 << 20).to_le_bytes();
    let mut lying = small;
    while let Some(at) = lying.windows(4).position(|window| window == claimed) {
        lying[at..at + 4].copy_from_slice(&100u32.to_le_bytes());
    }
    let (text, peak) = peak_of(|| refusal(&lying));
    assert!(text.contains("data.pkl"), "{text}");
    assert!(peak < 16 << 20, "{peak} bytes");
    assert_refused(&zipped(b".", "middle", &[], Pth::default()), &["byteorder"]);
    let empty = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut named = empty;
    named.start_file("readme", SimpleFileOptions::default()).unwrap();
    assert_refused(&named.finish().unwrap().into_inner(), &["without data.pkl"]);
}

#[test]
fn a_small_pth_never_takes_much_memory() {
    let refused = |pickle: Pickle, says: &str| {
        let deflated = Pth { deflated: true, ..Pth::default() };
        let bytes = zipped(&pickle.0, "little", &[vec![0; 64]], deflated);
        let (text, peak) = peak_of(|| refusal(&bytes));
        assert!(text.contains(says), "{text:?} does not say {says:?}");
        assert!(peak < 150 << 20, "{} kB take {peak} bytes: {text}", bytes.len() >> 10);
    };
    let begin = || {
        let mut pickle = Pickle::default();
        pickle.raw(b"\x80\x02");
        pickle
    };
    // One storage of a long key, named again and again.
    let mut keys = begin();
    keys.raw(b"(").text("storage").raw(b"ctorch\nFloatStorage\n").text(&"k".repeat(1 << 20)).text("cpu").int(1);
    keys.raw(b"tq\x000").raw(&b"h\x00Q0".repeat(200_000)).raw(b"}.");
    refused(keys, "not described as torch.save does");
    // As many objects as there are bytes.
    let mut objects = begin();
    objects.raw(&b"N0".repeat(1 << 20)).raw(b"}.");
    refused(objects, "objects");
    // One tensor under a name of a megabyte, and under many names.
    for (name, items, says) in [("n".repeat(1 << 20), 2, "longer"), ("n".into(), 800_000, "names than any")] {
        let mut names = begin();
        names.text(&name).raw(b"q\x000").tensor("FloatStorage", "0", 16, &[4, 4], &[4, 1]).raw(b"q\x010}(");
        names.raw(&b"h\x00h\x01".repeat(items)).raw(b"u.");
        refused(names, says);
    }
    // An archive of empty entries.
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    (0..20_000).for_each(|i| archive.start_file(i.to_string(), SimpleFileOptions::default()).unwrap());
    assert_refused(&archive.finish().unwrap().into_inner(), &["more than 10000 entries"]);
}

#[test]
fn an_onnx_of_empty_nodes_takes_little_memory() {
    let length = |mut n: usize| {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let nodes = [0x0a, 0x00].repeat(30 << 20);
    let file = [&[0x08, 0x08, 0x3a][..], &length(nodes.len()), &nodes].concat();
    let (text, peak) = peak_of(|| refusal(&file));
    assert!(text.contains("not a ResNet18's") && text.contains("parts"), "{text}");
    assert!(peak < 1 << 20, "{peak} bytes");
}

/// Flips a bit or cuts the end off, near the front (where structure lies), near the end, or anywhere.
fn damage(bytes: &[u8], front: usize, stream: &mut Stream) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    let at = match stream.next() % 4 {
        0 | 1 => stream.next() as usize % front.min(bytes.len()),
        2 => bytes.len() - 1 - stream.next() as usize % 2000.min(bytes.len()),
        _ => stream.next() as usize % bytes.len(),
    };
    if stream.next().is_multiple_of(3) {
        damaged.truncate(at);
    } else {
        (0..=stream.next() % 3).for_each(|_| damaged[at] ^= 1 << (stream.next() % 8));
    }
    damaged
}

/// Damages `bytes` in `rounds` ways: no panic, and never more memory than a few whole networks.
fn survive(bytes: &[u8], front: usize, rounds: usize) {
    let mut stream = Stream(bytes.len() as u64);
    let mut refused = 0;
    for round in 0..rounds {
        let damaged = damage(bytes, front, &mut stream);
        let (result, peak) = peak_of(|| Loaded::parse(&damaged));
        assert!(peak < 200 << 20, "round {round}: {peak} bytes");
        refused += usize::from(result.is_err());
    }
    assert!(refused > 0, "no damage was found in {rounds} rounds");
}

#[test]
fn damaged_safetensors_never_panic() {
    let (bytes, _) = write(&NETWORK, Precision::F16, &About::default()).unwrap();
    survive(&bytes, 4000, 100);
    survive(&as_safetensors(&TENSORS, "BF16"), 9000, 60);
}

#[test]
fn damaged_pth_never_panics() {
    survive(&as_pth(&TENSORS, Pth::default()), 12_000, 60);
    // Small archives, many rounds: the pickle machine and the ZIP reader.
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02}(").text("conv1.weight").tensor("FloatStorage", "0", 16, &[4, 4], &[4, 1]);
    pickle.text("bn1.bias").tensor("HalfStorage", "0", 16, &[2, 2], &[4, 1]).raw(b"u.");
    let small = zipped(&pickle.0, "little", &[vec![0; 64]], Pth::default());
    survive(&small, small.len(), 10_000);
}

#[test]
fn damaged_onnx_never_panics() {
    survive(&export_onnx(&NETWORK, 64, Precision::F16).unwrap(), 6000, 80);
}
