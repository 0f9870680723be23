//! A way as SVG: a line of stations from top to bottom, in a box for each network namespace, and the
//! place where it ends marked. Two ways stand at the same height up to where they part.

use maud::{Markup, html};

use super::markup::{duration, name};
use super::{Mark, Way};
use crate::hook::Area;
use crate::view::compare::compare;
use crate::view::stage::Stage;

/// Size of a picture and of what is in it, CSS pixels.
const WIDTH: u32 = 350;
const TRACK: u32 = 28;
const WORDS: u32 = 48;
const LINE: u32 = 17;
/// Between two stations.
const GAP: u32 = 13;
/// Above the first station of a namespace: its box's edge and its name.
const HEADING: u32 = 34;
/// Between two boxes, and above what ends a way.
const BETWEEN: u32 = 8;
/// Characters that fit beside a station.
const COLUMNS: usize = 31;
/// Most lines beside one station.
const MOST_LINES: usize = 5;
/// Most stations of a way.
const MOST_STATIONS: usize = 60;

/// Pictures of a way that failed and of one that did not.
pub(super) struct Pictures {
    /// Of the way that failed.
    pub(super) failing: Markup,
    /// Of the other one.
    pub(super) healthy: Option<Markup>,
}

/// Draws ways, beside each other where there are two.
pub(super) fn pictures(failing: &Way, healthy: Option<&Way>) -> Pictures {
    let ours = stations(failing);
    let Some(healthy) = healthy else {
        let rows = (0..ours.len()).map(|index| (Some(index), None)).collect();
        let grid = Grid::new(rows, None, &ours, &[]);
        return Pictures {
            failing: draw(failing, &ours, grid.side(true), None),
            healthy: None,
        };
    };
    let theirs = stations(healthy);
    let (rows, parting) = align(failing, healthy, ours.len(), theirs.len());
    let grid = Grid::new(rows, parting, &ours, &theirs);
    Pictures {
        failing: draw(failing, &ours, grid.side(true), grid.parting_top),
        healthy: Some(draw(healthy, &theirs, grid.side(false), grid.parting_top)),
    }
}

/// A stage ready to be drawn.
struct Station<'a> {
    stage: Option<&'a Stage>,
    lines: Vec<String>,
    shape: Shape,
    /// Since the first sight, nanoseconds.
    after_ns: Option<u64>,
    /// Something is said under it that a person must not miss.
    tag: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Of(Area),
    Lost,
    Arrived,
    Unknown,
}

impl Station<'_> {
    fn height(&self) -> u32 {
        (self.lines.len() + usize::from(self.tag.is_some())) as u32 * LINE + GAP
    }

    fn namespace(&self) -> Option<&str> {
        self.stage?.namespace.as_deref()
    }
}

/// The stations of a way; the last one says how it ended.
fn stations(way: &Way) -> Vec<Station<'_>> {
    let path = &way.journey.path;
    let first_lost = path.iter().position(|stage| stage.lost);
    let mut stations = Vec::new();
    for (index, stage) in path.iter().take(MOST_STATIONS).enumerate() {
        let mark: Option<&Mark> = way.marks.get(index);
        stations.push(Station {
            lines: wrap(&stage.text),
            shape: match mark {
                _ if stage.lost => Shape::Lost,
                Some(mark) => Shape::Of(mark.area),
                None => Shape::Unknown,
            },
            after_ns: mark.map(|mark| mark.after_ns),
            tag: (first_lost == Some(index)).then_some("it ends here"),
            stage: Some(stage),
        });
    }
    if path.len() > MOST_STATIONS {
        stations.push(Station {
            stage: None,
            lines: vec![format!("and {} stages more", path.len() - MOST_STATIONS)],
            shape: Shape::Unknown,
            after_ns: None,
            tag: None,
        });
    }
    let (shape, tag) = match way.journey.arrived {
        Some(true) => (Shape::Arrived, None),
        Some(false) if first_lost.is_some() => (Shape::Lost, None),
        Some(false) => (Shape::Lost, Some("it ends here")),
        None => (Shape::Unknown, None),
    };
    stations.push(Station {
        stage: None,
        lines: wrap(&way.journey.ending),
        shape,
        after_ns: None,
        tag,
    });
    stations
}

/// Indices of the stations that stand at the same height.
type Rows = Vec<(Option<usize>, Option<usize>)>;

/// Rows of both ways, and the one at which they part.
fn align(failing: &Way, healthy: &Way, ours: usize, theirs: usize) -> (Rows, Option<usize>) {
    let cut = |way: &Way| way.journey.path.len().min(MOST_STATIONS);
    let compared = compare(
        &failing.journey.path[..cut(failing)],
        &healthy.journey.path[..cut(healthy)],
    );
    // For good: what one way does more than the other before they meet again is a detour.
    let last_same = compared.rows.iter().rposition(|row| row.same());
    let together = last_same.map_or(0, |last| last + 1);
    let (mut left, mut right) = (0, 0);
    let mut rows = Rows::new();
    for row in &compared.rows[..together] {
        rows.push((
            row.left.as_ref().map(|_| left),
            row.right.as_ref().map(|_| right),
        ));
        left += usize::from(row.left.is_some());
        right += usize::from(row.right.is_some());
    }
    // Behind the parting nothing is gained by gaps.
    while left < ours || right < theirs {
        rows.push((
            (left < ours).then_some(left),
            (right < theirs).then_some(right),
        ));
        left += 1;
        right += 1;
    }
    (rows, compared.parting.map(|_| together))
}

/// Where each row is.
struct Grid {
    rows: Rows,
    /// Top of each row's stations.
    tops: Vec<u32>,
    /// Where the ways part.
    parting_top: Option<u32>,
}

/// Stations of one way: which, and where.
type Side = Vec<(usize, u32)>;

impl Grid {
    fn new(
        rows: Rows,
        parting: Option<usize>,
        ours: &[Station<'_>],
        theirs: &[Station<'_>],
    ) -> Self {
        let mut y = 4;
        let mut tops = Vec::new();
        let mut parting_top = None;
        for (number, (left, right)) in rows.iter().enumerate() {
            let both = [
                left.map(|index| &ours[index]),
                right.map(|index| &theirs[index]),
            ];
            let both = both.into_iter().flatten();
            let opens = both.clone().any(|station| station.namespace().is_some());
            if parting == Some(number) {
                parting_top = Some(y);
                y += LINE + BETWEEN;
            }
            if opens {
                y += HEADING;
            }
            let ends = |index: Option<usize>, way: &[Station<'_>]| {
                index.is_some_and(|index| index + 1 == way.len())
            };
            if ends(*left, ours) || ends(*right, theirs) {
                y += BETWEEN;
            }
            tops.push(y);
            y += both.map(Station::height).max().unwrap_or_default();
            let next_opens = rows.get(number + 1).is_some_and(|(left, right)| {
                left.is_some_and(|index| ours[index].namespace().is_some())
                    || right.is_some_and(|index| theirs[index].namespace().is_some())
            });
            if next_opens {
                y += BETWEEN;
            }
        }
        Self {
            rows,
            tops,
            parting_top,
        }
    }

    fn side(&self, left: bool) -> Side {
        let own = |(row, top): (&(Option<usize>, Option<usize>), &u32)| {
            Some((if left { row.0 } else { row.1 }?, *top))
        };
        self.rows.iter().zip(&self.tops).filter_map(own).collect()
    }
}

fn draw(way: &Way, stations: &[Station<'_>], side: Side, parting: Option<u32>) -> Markup {
    let bottom = |&(index, top): &(usize, u32)| top + stations[index].height();
    let height = side.iter().map(bottom).max().unwrap_or_default() + 6;
    let lost_at = side
        .iter()
        .find(|(index, _)| stations[*index].shape == Shape::Lost)
        .map(|&(_, top)| top + LINE / 2);
    let first = side.first().map_or(0, |&(_, top)| top + LINE / 2);
    let last = side.last().map_or(0, |&(_, top)| top + LINE / 2);
    let state = match way.journey.arrived {
        Some(true) => "way arrived",
        Some(false) => "way lost",
        None => "way unknown",
    };
    html! {
        svg class=(state) viewBox=(format!("0 0 {WIDTH} {height}")) role="img"
            aria-label=(in_words(way)) {
            @for (top, bottom, namespace) in boxes(stations, &side) {
                rect.namespace x="1" y=(top) width=(WIDTH - 2) height=(bottom - top) rx="8" {}
                text.namespace x=(WORDS) y=(top + 18) { (name(&namespace)) }
            }
            line.track x1=(TRACK) x2=(TRACK) y1=(first) y2=(lost_at.unwrap_or(last)) {}
            @if let Some(lost_at) = lost_at {
                line.track.after x1=(TRACK) x2=(TRACK) y1=(lost_at) y2=(last) {}
            }
            @if let Some(parting) = parting.filter(|&parting| parting < height) {
                line.parting x1="0" x2=(WIDTH) y1=(parting + 10) y2=(parting + 10) {}
                rect.parting x=(WIDTH - 146) y=(parting) width="140" height="20" rx="10" {}
                text.parting x=(WIDTH - 76) y=(parting + 14) text-anchor="middle" {
                    "the two ways part"
                }
            }
            @for &(index, top) in &side {
                (station(&stations[index], top, index + 1 == stations.len()))
            }
        }
    }
}

/// Top, bottom and name of each namespace's box.
fn boxes(stations: &[Station<'_>], side: &Side) -> Vec<(u32, u32, String)> {
    let mut boxes: Vec<(u32, u32, String)> = Vec::new();
    // The last one says how it ended, and is in no namespace.
    let inside = side.len().saturating_sub(1);
    for &(index, top) in &side[..inside] {
        let station = &stations[index];
        let bottom = top + station.height() - 2;
        match (station.namespace(), boxes.last_mut()) {
            (Some(namespace), _) => boxes.push((top - HEADING + 4, bottom, namespace.to_owned())),
            (None, Some(last)) => last.1 = bottom,
            (None, None) => {}
        }
    }
    boxes
}

fn station(station: &Station<'_>, top: u32, end: bool) -> Markup {
    let y = top + LINE / 2;
    let lost = station.shape == Shape::Lost;
    let class = match (end, lost) {
        (true, _) => "words end",
        (false, true) => "words lost",
        (false, false) => "words",
    };
    html! {
        g {
            title { (said(station.shape)) }
            (shape(station.shape, TRACK, y))
            text class=(class) x=(WORDS) y=(y + 5) {
                @for (number, line) in station.lines.iter().enumerate() {
                    tspan x=(WORDS) dy=(if number == 0 { 0 } else { LINE }) { (name(line)) }
                }
                @if let Some(tag) = station.tag {
                    tspan.tag x=(WORDS) dy=(LINE) { (tag) }
                }
            }
            @if let Some(after_ns) = station.after_ns {
                text.time x=(WIDTH - 10) y=(y + 4) text-anchor="end" { (duration(after_ns)) }
            }
        }
    }
}

const fn said(shape: Shape) -> &'static str {
    match shape {
        Shape::Of(area) => area.name(),
        Shape::Lost => "the packet ends here",
        Shape::Arrived => "arrived",
        Shape::Unknown => "not known",
    }
}

/// What a station looks like, around a point.
fn shape(shape: Shape, x: u32, y: u32) -> Markup {
    let diamond = |size: u32| {
        format!(
            "{x},{} {},{y} {x},{} {},{y}",
            y - size,
            x + size,
            y + size,
            x - size
        )
    };
    html! {
        @match shape {
            Shape::Lost => {
                circle.lost cx=(x) cy=(y) r="10" {}
                path.cross d=(format!("M{} {}l8 8m0-8l-8 8", x - 4, y - 4)) {}
            }
            Shape::Arrived => {
                circle.arrived cx=(x) cy=(y) r="10" {}
                path.cross d=(format!("M{} {y}l4 4l6-8", x - 5)) {}
            }
            Shape::Unknown => circle.hollow cx=(x) cy=(y) r="5" {},
            Shape::Of(Area::Device) => rect.solid x=(x - 7) y=(y - 7) width="14" height="14" rx="3" {},
            Shape::Of(Area::Bridge) => rect.solid x=(x - 11) y=(y - 5) width="22" height="10" rx="2" {},
            Shape::Of(Area::Tunnel) => rect.hollow x=(x - 10) y=(y - 6) width="20" height="12" rx="6" {},
            Shape::Of(Area::Ipvs) => polygon.solid points=(diamond(10)) {},
            Shape::Of(Area::Netfilter) => polygon.hollow points=(diamond(7)) {},
            Shape::Of(Area::Conntrack) => circle.hollow cx=(x) cy=(y) r="6" {},
            Shape::Of(Area::Socket) => {
                circle.hollow cx=(x) cy=(y) r="8" {}
                circle.solid cx=(x) cy=(y) r="4" {}
            }
            Shape::Of(Area::Ip | Area::Neighbour | Area::Drop) => circle.solid cx=(x) cy=(y) r="5" {},
        }
    }
}

/// What the shapes stand for.
pub(super) fn legend() -> Markup {
    let kinds = [
        (Area::Device, "device"),
        (Area::Bridge, "bridge"),
        (Area::Tunnel, "tunnel"),
        (Area::Ip, "routing"),
        (Area::Netfilter, "netfilter hook"),
        (Area::Conntrack, "conntrack, NAT"),
        (Area::Ipvs, "IPVS"),
        (Area::Socket, "socket"),
    ];
    html! {
        ul.legend aria-label="What the shapes stand for" {
            @for (area, words) in kinds {
                li {
                    svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true" {
                        (shape(Shape::Of(area), 12, 12))
                    }
                    (words)
                }
            }
        }
    }
}

/// The way for whoever does not see the picture.
fn in_words(way: &Way) -> String {
    let mut words = Vec::new();
    for stage in way.journey.path.iter().take(MOST_STATIONS) {
        let namespace = stage.namespace.iter().map(|name| format!("[{name}] "));
        let lost = if stage.lost { "lost at " } else { "" };
        words.push(format!(
            "{}{lost}{}",
            namespace.collect::<String>(),
            stage.text
        ));
    }
    words.push(way.journey.ending.clone());
    let words = words.join(", ");
    super::markup::prose(&words).characters().collect()
}

/// Lines that fit beside a station; words longer than a line are cut.
fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    let mut columns = 0;
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().take(COLUMNS * MOST_LINES).collect();
        for (number, part) in letters.chunks(COLUMNS).enumerate() {
            let space = usize::from(columns > 0 && number == 0);
            if columns + space + part.len() > COLUMNS && columns > 0 {
                if lines.len() == MOST_LINES {
                    if let Some(last) = lines.last_mut() {
                        last.push('…');
                    }
                    return lines;
                }
                lines.push(String::new());
                columns = 0;
            }
            if let Some(last) = lines.last_mut() {
                if columns > 0 && number == 0 {
                    last.push(' ');
                    columns += 1;
                }
                last.extend(part);
                columns += part.len();
            }
        }
    }
    lines
}
