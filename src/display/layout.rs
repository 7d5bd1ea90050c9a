//! Where things lie on screens with room for the heatmap.

use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;

/// The place of each part of the picture.
pub(crate) struct Places {
    /// Names and time.
    pub(crate) header: Rectangle,
    /// The class.
    pub(crate) panel: Rectangle,
    /// The heatmap.
    pub(crate) heat: Rectangle,
    /// The cell's id.
    pub(crate) cell: Rectangle,
    /// A, B, C, INVALID and the yield.
    pub(crate) counts: [Rectangle; 5],
    /// Camera, broker, store, model.
    pub(crate) lamps: [Rectangle; 4],
    /// The temperature.
    pub(crate) temperature: Rectangle,
    /// The badge that the line drifts.
    pub(crate) drift: Rectangle,
}

impl Places {
    /// Lying screens have the heatmap beside the class, standing and square ones below it.
    pub(crate) fn of(size: Size) -> Self {
        let lying = size.width >= size.height * 5 / 4;
        let base = if lying { (320, 240) } else { (240, 320) };
        let unit = (size.width as f32 / base.0 as f32).min(size.height as f32 / base.1 as f32);
        let px = |length: u32| (length as f32 * unit) as i32;
        let (wide, high) = (size.width as i32, size.height as i32);
        let gap = px(4);
        let at = |x: i32, y: i32, w: i32, h: i32| Rectangle::new(Point::new(x, y), Size::new(w as u32, h as u32));
        let header = at(0, 0, wide, px(18));
        let inner = wide - 2 * gap;
        if lying {
            let lamp_top = high - px(24);
            let count_top = lamp_top - px(40);
            let cell_top = count_top - px(24);
            let top = px(18) + gap;
            let tall = cell_top - gap - top;
            // The class comes first.
            let side = tall.min(inner * 42 / 100);
            let panel = at(gap, top, inner - side - gap, tall);
            let column = inner / 5;
            let lamp = inner * 53 / 312;
            Self {
                header,
                panel,
                heat: at(wide - gap - side, top + (tall - side) / 2, side, side),
                cell: at(gap, cell_top, inner, px(22)),
                counts: std::array::from_fn(|i| at(gap + column * i as i32, count_top, column, px(36))),
                lamps: std::array::from_fn(|i| at(gap + lamp * i as i32, lamp_top, lamp, px(20))),
                temperature: at(gap + 4 * lamp + gap, lamp_top, px(40), px(20)),
                drift: at(wide - gap - px(50), lamp_top, px(50), px(20)),
            }
        } else {
            let lamp_top = high - px(46);
            let middle_top = lamp_top - px(112);
            let cell_top = middle_top - px(24);
            let top = px(18) + gap;
            let side = px(108);
            let list = gap + side + gap;
            let (column, row) = ((wide - list - gap) / 2, px(36));
            let lamp = inner / 3;
            let place = |i: usize| at(gap + lamp * (i as i32 % 3), lamp_top + px(23) * (i as i32 / 3), lamp, px(20));
            Self {
                header,
                panel: at(gap, top, inner, cell_top - gap - top),
                heat: at(gap, middle_top, side, side),
                cell: at(gap, cell_top, inner, px(22)),
                counts: std::array::from_fn(|i| {
                    let wide = if i == 4 { 2 * column } else { column };
                    at(list + column * (i as i32 % 2), middle_top + row * (i as i32 / 2), wide, px(34))
                }),
                lamps: std::array::from_fn(place),
                temperature: place(4),
                drift: at(wide - gap - px(60), lamp_top + px(23), px(60), px(20)),
            }
        }
    }
}
