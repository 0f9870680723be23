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
/// Above everything.
const TOP: u32 = 4;
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
        let mut column = Column::default();
        column.rest(&ours, 0, TOP);
        return Pictures {
            failing: draw(failing, &ours, &column, None),
            healthy: None,
        };
    };
    let theirs = stations(healthy);
    let (left, right, parting) = columns(failing, healthy, &ours, &theirs);
    Pictures {
        failing: draw(failing, &ours, &left, parting),
        healthy: Some(draw(healthy, &theirs, &right, parting)),
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

/// Where each station of a way is: its top, in order.
#[derive(Default)]
struct Column(Vec<u32>);

impl Column {
    /// Puts the stations from an index on below a height, each as high as it is.
    fn rest(&mut self, stations: &[Station<'_>], from: usize, mut y: u32) {
        for (index, station) in stations.iter().enumerate().skip(from) {
            if station.namespace().is_some() {
                y += HEADING + if index > 0 { BETWEEN } else { 0 };
            }
            if index + 1 == stations.len() {
                y += BETWEEN;
            }
            self.0.push(y);
            y += station.height();
        }
    }
}

/// Places two ways: at the same height up to where they part for good, then each by itself. What one
/// way does more than the other before they meet again is a detour.
fn columns(
    failing: &Way,
    healthy: &Way,
    ours: &[Station<'_>],
    theirs: &[Station<'_>],
) -> (Column, Column, Option<u32>) {
    let cut = |way: &Way| way.journey.path.len().min(MOST_STATIONS);
    let compared = compare(
        &failing.journey.path[..cut(failing)],
        &healthy.journey.path[..cut(healthy)],
    );
    let last_same = compared.rows.iter().rposition(|row| row.same());
    let together = last_same.map_or(0, |last| last + 1);
    let (mut left, mut right) = (Column::default(), Column::default());
    let mut y = TOP;
    for (number, row) in compared.rows[..together].iter().enumerate() {
        let (one, other) = (left.0.len(), right.0.len());
        let one = row.left.as_ref().map(|_| &ours[one]);
        let other = row.right.as_ref().map(|_| &theirs[other]);
        let both = || one.into_iter().chain(other);
        if both().any(|station| station.namespace().is_some()) {
            y += HEADING + if number > 0 { BETWEEN } else { 0 };
        }
        left.0.extend(one.map(|_| y));
        right.0.extend(other.map(|_| y));
        y += both().map(Station::height).max().unwrap_or_default();
    }
    let parting = compared.parting.map(|_| y);
    if parting.is_some() {
        y += LINE + BETWEEN;
    }
    let (one, other) = (left.0.len(), right.0.len());
    left.rest(ours, one, y);
    right.rest(theirs, other, y);
    (left, right, parting)
}

fn draw(way: &Way, stations: &[Station<'_>], column: &Column, parting: Option<u32>) -> Markup {
    let placed = || stations.iter().zip(column.0.iter().copied());
    let bottom = |(station, top): (&Station<'_>, u32)| top + station.height();
    let height = placed().map(bottom).max().unwrap_or_default() + 6;
    let middle = |top: u32| top + LINE / 2;
    let lost_at = placed()
        .find(|(station, _)| station.shape == Shape::Lost)
        .map(|(_, top)| middle(top));
    let first = column.0.first().map_or(0, |&top| middle(top));
    let last = column.0.last().map_or(0, |&top| middle(top));
    let state = match way.journey.arrived {
        Some(true) => "way arrived",
        Some(false) => "way lost",
        None => "way unknown",
    };
    html! {
        svg class=(state) viewBox=(format!("0 0 {WIDTH} {height}")) role="img"
            aria-label=(in_words(way)) {
            @for (top, bottom, namespace) in boxes(stations, column) {
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
            @for (index, (placed, top)) in placed().enumerate() {
                (station(placed, top, index + 1 == stations.len()))
            }
        }
    }
}

/// Top, bottom and name of each namespace's box.
fn boxes(stations: &[Station<'_>], column: &Column) -> Vec<(u32, u32, String)> {
    let mut boxes: Vec<(u32, u32, String)> = Vec::new();
    // The last one says how it ended, and is in no namespace.
    let inside = stations.len().saturating_sub(1);
    for (station, &top) in stations[..inside].iter().zip(&column.0) {
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
