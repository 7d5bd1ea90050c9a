//! What the generator promises.

use super::*;

fn small(selection: Selection) -> Generator {
    Generator::new(SynthConfig { size: 240, selection, ..SynthConfig::default() }, 11).unwrap()
}

fn same(a: &SynthCell, b: &SynthCell) -> bool {
    let truth = |c: &SynthCell| (c.class, c.defects.clone(), c.quad, c.cell_id);
    a.frame == b.frame && a.mask == b.mask && truth(a) == truth(b)
}

fn digest(cell: &SynthCell) -> String {
    let mut hash = blake3::Hasher::new();
    for p in cell.frame.pixels() {
        hash.update(&p.to_le_bytes());
    }
    hash.update(&cell.mask);
    hash.finalize().to_hex()[..16].to_owned()
}

#[test]
fn a_cell_depends_on_seed_and_index_only() {
    let (one, two) = (small(Selection::Balanced), small(Selection::Balanced));
    let forward: Vec<_> = (0..9).map(|i| one.cell(i)).collect();
    let mut reused = SynthCell::default();
    for i in (0..9).rev() {
        two.cell_into(i, &mut reused);
        assert!(same(&forward[i as usize], &reused), "cell {i} differs out of order in a used buffer");
    }
    assert!(!same(&forward[0], &forward[3]));
    let other = Generator::new(one.config().clone(), 12).unwrap();
    assert_ne!(other.cell(0).frame, forward[0].frame);
}

#[test]
fn threads_make_the_same_cells() {
    let generator = small(Selection::Only(Class::C));
    let alone: Vec<_> = (0..4).map(|i| digest(&generator.cell(i))).collect();
    let generator = &generator;
    std::thread::scope(|scope| {
        let other: Vec<_> = (0..4).map(|i| scope.spawn(move || digest(&generator.cell(i)))).collect();
        for (want, got) in alone.iter().zip(other) {
            assert_eq!(*want, got.join().unwrap());
        }
    });
}

/// The drawing is versioned: whoever changes a pixel raises `DRAWING` and these digests, which hold on every machine.
#[test]
fn the_drawing_is_the_same_on_every_machine() {
    let generator = small(Selection::Natural);
    let digests: Vec<_> = DefectKind::ALL.iter().map(|&kind| digest(&generator.with_defect(1, kind))).collect();
    let all = blake3::hash(digests.concat().as_bytes()).to_hex()[..16].to_owned();
    assert_eq!((DRAWING, all.as_str()), (1, "b76236e66cb0e61f"));
}

#[test]
fn a_used_cell_of_another_size_and_depth_leaves_no_trace() {
    let mut cell = SynthCell::default();
    let big = SynthConfig { size: 300, white: 65535, selection: Selection::Only(Class::C), ..SynthConfig::default() };
    Generator::new(big, 1).unwrap().cell_into(5, &mut cell);
    let generator = small(Selection::Natural);
    generator.cell_into(0, &mut cell);
    assert!(same(&generator.cell(0), &cell));
}

#[test]
fn refilling_a_cell_keeps_its_buffers() {
    let generator = small(Selection::Balanced);
    let mut cell = SynthCell::default();
    generator.cell_into(2, &mut cell);
    let at = |c: &SynthCell| (c.frame.pixels().as_ptr(), c.mask.as_ptr(), c.defects.as_ptr(), c.canvas.gain.as_ptr());
    let before = at(&cell);
    for index in 0..12 {
        generator.cell_into(index, &mut cell);
        assert_eq!(before, at(&cell), "cell {index} moved a buffer");
    }
}

#[test]
fn classes_come_in_their_proportions() {
    let generator = small(Selection::Natural);
    let n = 20_000;
    let mut hits = [0_u32; 3];
    for index in 0..n {
        hits[generator.class(index) as usize] += 1;
    }
    for (hit, p) in hits.into_iter().zip([0.963, 0.029, 0.008]) {
        let (mean, deviation) = (n as f64 * p, (n as f64 * p * (1.0 - p)).sqrt());
        assert!((f64::from(hit) - mean).abs() < 4.0 * deviation, "{hit} cells, about {mean} expected");
    }
}

#[test]
fn cracks_are_to_dark_areas_as_in_the_set() {
    let generator = small(Selection::Only(Class::C));
    let n = 20_000;
    let is_crack = |kind: DefectKind| kind.name().starts_with("crack");
    let cracked = (0..n).filter(|&i| generator.plan(i, Selection::Only(Class::C)).kinds().any(is_crack)).count();
    let p = 76.0 / 575.0;
    let (mean, deviation) = (n as f64 * p, (n as f64 * p * (1.0 - p)).sqrt());
    assert!((cracked as f64 - mean).abs() < 4.0 * deviation, "{cracked}, about {mean} expected");
}

#[test]
fn a_mask_is_there_exactly_for_b_and_c() {
    let generator = small(Selection::Balanced);
    let mut cell = SynthCell::default();
    for index in 0..90 {
        generator.cell_into(index, &mut cell);
        let marked = cell.mask.iter().any(|&m| m != 0);
        assert_eq!(marked, cell.class != Class::A, "cell {index}, {:?}", cell.class);
        assert_eq!(cell.defects.is_empty(), cell.class == Class::A);
        assert_eq!(cell.class, generator.class(index));
        let listed: Vec<_> = cell.kinds().map(DefectKind::code).collect();
        for (i, &code) in cell.mask.iter().enumerate().filter(|(_, m)| **m != 0) {
            assert!(listed.contains(&code), "cell {index} marks a kind that it does not list");
            let (x, y) = (i % 240, i / 240);
            assert!(
                cell.defects.iter().any(|d| {
                    let b = d.bbox;
                    d.kind.code() == code && (b.x..b.x + b.width).contains(&x) && (b.y..b.y + b.height).contains(&y)
                }),
                "cell {index}: pixel {x},{y} lies in no box"
            );
        }
    }
}

#[test]
fn every_defect_takes_light_away_where_its_mask_says() {
    let generator = small(Selection::Natural);
    let (mut cell, mut bare) = (SynthCell::default(), SynthCell::default());
    for kind in DefectKind::ALL {
        for index in 0..12 {
            generator.with_defect_into(index, kind, &mut cell);
            // The same pose, texture, harmless dots and noise, without the defects.
            generator.draw(index, &Plan::good(), &mut bare);
            assert!(kind.classes().contains(&cell.class));
            let (mut with, mut without, mut n, mut elsewhere) = (0.0, 0.0, 0, 0);
            for ((&mask, &a), &b) in cell.mask.iter().zip(cell.frame.pixels()).zip(bare.frame.pixels()) {
                if mask == kind.code() {
                    (with, without, n) = (with + f64::from(a), without + f64::from(b), n + 1);
                } else if i32::from(b) - i32::from(a) > 40 {
                    elsewhere += 1;
                }
            }
            assert!(n > 0, "{kind} {index} marks nothing");
            assert!(with < 0.93 * without, "{kind} {index}: {with} with, {without} without it, on {n} pixels");
            // Projection of the mask is to the nearest pixel, that of the light is not.
            assert!(elsewhere <= 8 + n / 12, "{kind} {index} darkens {elsewhere} pixels outside its mask of {n}");
        }
    }
}

#[test]
fn a_dimmed_cell_is_marked_all_over() {
    let cell = small(Selection::Natural).with_defect(3, DefectKind::Dimmed);
    let marked = cell.mask.iter().filter(|&&m| m != 0).count() as f64;
    let (w, h) = (cell.quad[1].0 - cell.quad[0].0, cell.quad[3].1 - cell.quad[0].1);
    assert!(marked > 0.95 * w * h, "{marked} of {}", w * h);
}

#[test]
fn the_cell_is_bright_inside_its_quad_and_the_background_dark() {
    for (size, white, jitter) in [(720, 255, 1.0), (720, 65535, 2.0), (240, 4095, 0.0), (64, 255, 1.0)] {
        let config = SynthConfig { size, white, pose_jitter: jitter, with_id: true, ..SynthConfig::default() };
        let generator = Generator::new(config, 3).unwrap();
        let mut cell = SynthCell::default();
        for index in 0..6 {
            generator.cell_into(index, &mut cell);
            let threshold = u32::from(white) * 50 / 255;
            let (mut bright, mut sum, mut n) = (0_usize, 0.0, 0_usize);
            for y in 0..size {
                for (x, &p) in cell.frame.row(y).iter().enumerate() {
                    let (fx, fy) = (x as f64 + 0.5, y as f64 + 0.5);
                    // Distance to each side of the quad, positive inside.
                    let depth = (0..4)
                        .map(|k| {
                            let ((ax, ay), (bx, by)) = (cell.quad[k], cell.quad[(k + 1) % 4]);
                            let (dx, dy) = (bx - ax, by - ay);
                            (dx * (fy - ay) - dy * (fx - ax)) / (dx * dx + dy * dy).sqrt()
                        })
                        .fold(f64::INFINITY, f64::min);
                    if u32::from(p) > threshold {
                        assert!(depth > -2.5, "{size}: bright pixel {x},{y} of cell {index} is {} outside", -depth);
                        bright += 1;
                    }
                    if depth > 0.0 {
                        (sum, n) = (sum + f64::from(p), n + 1);
                    }
                }
            }
            let mean = sum / n as f64 / f64::from(white) * 255.0;
            assert!((115.0..180.0).contains(&mean), "mean brightness {mean}");
            assert!(bright as f64 > 0.88 * n as f64, "{bright} of {n} pixels in the quad are bright");
        }
    }
}

#[test]
fn few_good_cells_are_free_of_dots() {
    // Without noise and busbars, a dot is a dip against its neighbours to the left and right.
    let config = SynthConfig { noise: 0.0, busbars: 0, selection: Selection::Only(Class::A), ..SynthConfig::default() };
    let generator = Generator::new(config, 5).unwrap();
    let mut cell = SynthCell::default();
    let dotted = (0..40)
        .filter(|&index| {
            generator.cell_into(index, &mut cell);
            let p = cell.frame.pixels();
            (100..620).any(|y| {
                (100..620).any(|x| {
                    let at = y * 720 + x;
                    2 * i32::from(p[at]) + 12 < i32::from(p[at - 9]) + i32::from(p[at + 9])
                })
            })
        })
        .count();
    assert!(dotted >= 30, "{dotted} of 40 good cells have a dot");
}

#[test]
fn ids_are_read_back_from_noisy_frames() {
    for (size, white) in [(720, 255), (720, 65535), (240, 1023), (64, 255)] {
        let config = SynthConfig { size, white, with_id: true, ..SynthConfig::default() };
        let generator = Generator::new(config.clone(), 9).unwrap();
        for index in [0, 1, 77_777, u64::from(u32::MAX)] {
            assert_eq!(read_id(&generator.cell(index).frame), Some(index as u32), "{size} {white}");
        }
        let without = Generator::new(SynthConfig { with_id: false, ..config }, 9).unwrap();
        assert_eq!(read_id(&without.cell(4).frame), None);
    }
}

#[test]
fn depths_show_the_same_cell() {
    let base = SynthConfig { size: 240, ..SynthConfig::default() };
    let eight = Generator::new(base.clone(), 2).unwrap().cell(8);
    let twelve = Generator::new(SynthConfig { white: 4095, ..base }, 2).unwrap().cell(8);
    for (&a, &b) in eight.frame.pixels().iter().zip(twelve.frame.pixels()) {
        assert!((f64::from(a) - f64::from(b) * 255.0 / 4095.0).abs() < 0.6, "{a} {b}");
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let base = SynthConfig::default;
    let refuse = |config: SynthConfig| Generator::new(config, 0).unwrap_err();
    assert_eq!(refuse(SynthConfig { size: 63, ..base() }), SynthError::Size { size: 63 });
    assert_eq!(refuse(SynthConfig { size: 1 << 40, ..base() }), SynthError::Size { size: 1 << 40 });
    assert_eq!(refuse(SynthConfig { white: 0, ..base() }), SynthError::White { white: 0 });
    for proportions in [[0.0; 3], [-0.1, 0.5, 0.5], [f64::NAN, 1.0, 1.0], [f64::MAX, f64::MAX, 1.0]] {
        assert!(matches!(refuse(SynthConfig { proportions, ..base() }), SynthError::Proportions { .. }));
    }
    let range = |config, field| {
        assert!(matches!(refuse(config), SynthError::Range { name, .. } if name == field), "{field}");
    };
    range(SynthConfig { pose_jitter: f64::NAN, ..base() }, "pose_jitter");
    range(SynthConfig { busbars: 13, ..base() }, "busbars");
    range(SynthConfig { brightness: 1.0, ..base() }, "brightness");
    range(SynthConfig { noise: -1.0, ..base() }, "noise");
    range(SynthConfig { dark: 0.2, ..base() }, "dark");
    range(SynthConfig { vignette: 0.6, ..base() }, "vignette");
    assert!(matches!("chip".parse::<DefectKind>(), Err(SynthError::UnknownDefect { name }) if name == "chip"));
}

#[test]
fn the_smallest_and_barest_settings_draw_every_kind() {
    for (size, busbars) in [(64, 0), (64, 12), (65, 5), (1024, 1)] {
        let config = SynthConfig { size, busbars, pose_jitter: 2.0, ..SynthConfig::default() };
        let generator = Generator::new(config, 1).unwrap();
        let mut cell = SynthCell::default();
        for kind in DefectKind::ALL {
            generator.with_defect_into(6, kind, &mut cell);
            assert!(cell.kinds().eq([kind]), "{kind} at {size} with {busbars} busbars");
        }
    }
}

#[test]
fn kinds_keep_their_codes_and_names() {
    for (i, kind) in DefectKind::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(kind.code()), i + 1);
        assert_eq!(DefectKind::from_code(kind.code()), Some(kind));
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
    }
    assert_eq!(DefectKind::from_code(0), None);
    assert_eq!(DefectKind::from_code(11), None);
}
