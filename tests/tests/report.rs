//! The page that `tracer report` makes, in a real browser.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use serde_json::{Value, json};
use tests::browser::Browser;
use tracer::capture::{Reader, Reported, report};
use tracer::filter::Filter;
use tracer::view::report::{Report, page};

/// Where pages and pictures of them are left for a person to look at.
const LEFT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/report");

/// Sizes of a window: width and height.
const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);
/// A4 at 96 dots an inch.
const PAPER: (u32, u32) = (794, 1123);

/// Captures that the lab made; see the folder's README.
fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let mut captures: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder of captures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "pcapng"))
        .collect();
    captures.sort();
    assert!(!captures.is_empty());
    captures
}

/// A capture's report and its page, as a file.
fn page_of(capture: &Path) -> (Report, PathBuf) {
    let name = capture.file_name().expect("a name").to_string_lossy();
    let mut reader = Reader::open(capture).expect("a capture");
    let Reported { report, error } = report(
        name.clone().into_owned(),
        &mut reader,
        Filter::default(),
        |_| {},
    )
    .expect("a report");
    assert!(error.is_none(), "{error:?}");
    std::fs::create_dir_all(LEFT).expect("a folder for pages");
    let file = Path::new(LEFT).join(name.replace(".pcapng", ".html"));
    std::fs::write(&file, page(&report)).expect("a page");
    (report, file)
}

fn window(browser: &mut Browser, (width, height): (u32, u32), scheme: &str) -> anyhow::Result<()> {
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}),
    )?;
    browser.call(
        "Emulation.setEmulatedMedia",
        json!({"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}),
    )?;
    Ok(())
}

fn keep(data: &Value, page: &Path, ending: &str) -> anyhow::Result<()> {
    let data = data["data"].as_str().context("no picture")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
    std::fs::write(page.with_extension(ending), bytes)?;
    Ok(())
}

/// A picture of the whole page.
fn picture(browser: &mut Browser, page: &Path, ending: &str) -> anyhow::Result<()> {
    let shot = browser.call(
        "Page.captureScreenshot",
        json!({"format": "png", "captureBeyondViewport": true}),
    )?;
    keep(&shot, page, ending)
}

/// Nothing sticks out at the side.
fn fits(browser: &mut Browser) -> anyhow::Result<()> {
    let over = browser
        .evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")?;
    assert_eq!(over, 0, "the page is wider than its window");
    Ok(())
}

#[test]
fn every_verdict_is_seen_on_every_screen_and_nothing_is_complained_of() -> anyhow::Result<()> {
    let mut browser = Browser::start()?;
    for capture in captures() {
        let (report, page) = page_of(&capture);
        assert!(!report.verdicts.is_empty(), "{}", capture.display());
        for (size, scheme, ending) in [
            (DESKTOP, "light", "light.png"),
            (DESKTOP, "dark", "dark.png"),
            (PHONE, "light", "phone.png"),
        ] {
            window(&mut browser, size, scheme)?;
            browser.open(&page)?;
            fits(&mut browser)?;
            for (number, verdict) in (1..).zip(&report.verdicts) {
                let place = format!("#verdict-{number}");
                let text = format!("document.querySelector('{place}').innerText");
                let text = browser.evaluate(&text)?;
                let text = text.as_str().context("no text")?;
                let diagnosis = &verdict.diagnosis;
                let (_, proof) = &diagnosis.evidence[0];
                let fix = &diagnosis.fixes[0].lines[0];
                for wanted in [&*diagnosis.cause, &diagnosis.summary, proof, fix] {
                    assert!(text.contains(wanted), "{wanted:?} is not in {text:?}");
                }
                let pictures = format!(
                    "Array.from(document.querySelectorAll('{place} svg.way'), \
                     picture => picture.getBoundingClientRect().height > 100)"
                );
                let drawn =
                    usize::from(verdict.failing.is_some()) + usize::from(verdict.healthy.is_some());
                assert_eq!(browser.evaluate(&pictures)?, json!(vec![true; drawn]));
            }
            let ends =
                browser.evaluate("document.querySelector('svg.way.lost .tag')?.textContent")?;
            assert_eq!(ends, "it ends here");
            picture(&mut browser, &page, ending)?;
        }
        // The first flow opened, as a reader would.
        window(&mut browser, DESKTOP, "light")?;
        browser.open(&page)?;
        browser.evaluate(
            "for (const part of document.querySelectorAll('details')) part.open = true; \
             document.querySelectorAll('#timeline > :nth-child(n + 9)').forEach(flow => flow.remove())",
        )?;
        picture(&mut browser, &page, "open.png")?;
        browser.open(&page)?;
        let printed = browser.call("Page.printToPDF", json!({"printBackground": true}))?;
        keep(&printed, &page, "pdf")?;
        window(&mut browser, PAPER, "dark")?;
        browser.call("Emulation.setEmulatedMedia", json!({"media": "print"}))?;
        picture(&mut browser, &page, "print.png")?;
    }
    assert_eq!(browser.complaints(), &[] as &[String]);
    let own = |address: &String| address.starts_with("file:") || address == "about:blank";
    assert!(
        browser.requests().iter().all(own),
        "{:?}",
        browser.requests()
    );
    Ok(())
}

/// Presses Tab until the focus is on something that matches.
fn tab_to(browser: &mut Browser, selector: &str) -> anyhow::Result<()> {
    for _ in 0..2_000 {
        browser.press("Tab")?;
        let there = format!("document.activeElement.matches({})", json!(selector));
        if browser.evaluate(&there)? == true {
            return Ok(());
        }
    }
    anyhow::bail!("the keyboard does not reach {selector}")
}

/// Waits for what the page does by itself after an event.
fn until(browser: &mut Browser, condition: &str) -> anyhow::Result<()> {
    for _ in 0..200 {
        if browser.evaluate(condition)? == true {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("never true: {condition}")
}

#[test]
fn the_keyboard_opens_flows_sorts_and_filters() -> anyhow::Result<()> {
    let mut browser = Browser::start()?;
    let (report, page) = page_of(&captures()[0]);
    window(&mut browser, DESKTOP, "light")?;
    browser.open(&page)?;

    tab_to(&mut browser, ".tools[data-for=timeline] input[type=search]")?;
    browser.r#type("no such word anywhere")?;
    let shown = "document.querySelectorAll('#timeline > .item:not([hidden])').length";
    assert_eq!(browser.evaluate(shown)?, 0);
    browser.evaluate("document.activeElement.value = ''")?;
    tab_to(
        &mut browser,
        ".tools[data-for=timeline] input[type=checkbox]",
    )?;
    browser.press(" ")?;
    let lost = report
        .flows
        .iter()
        .filter(|flow| flow.row.failed > 0)
        .count();
    assert!(lost > 0 && lost < report.flows.len());
    assert_eq!(browser.evaluate(shown)?, lost);
    browser.press(" ")?;
    assert_eq!(browser.evaluate(shown)?, report.flows.len());

    tab_to(&mut browser, "details.flow > summary")?;
    browser.press("Enter")?;
    let open = "document.activeElement.parentElement.open";
    assert_eq!(browser.evaluate(open)?, true);
    tab_to(&mut browser, "details.events > summary")?;

    tab_to(&mut browser, "#tables th:nth-child(7) button")?;
    let column = "Array.from(document.querySelectorAll('#flow-rows tr'), \
                  row => Number(row.cells[6].textContent))";
    let mut expected: Vec<u64> = report.flows.iter().map(|flow| flow.row.packets).collect();
    expected.sort_unstable();
    browser.press("Enter")?;
    assert_eq!(browser.evaluate(column)?, json!(expected));
    browser.press("Enter")?;
    expected.reverse();
    assert_eq!(browser.evaluate(column)?, json!(expected));

    // A row leads to its flow, and opens it.
    tab_to(&mut browser, "#packet-rows tr:last-child a")?;
    browser.press("Enter")?;
    until(
        &mut browser,
        "document.querySelector(location.hash || 'html').open",
    )?;
    assert_eq!(browser.complaints(), &[] as &[String]);
    Ok(())
}

#[test]
fn a_hostile_name_is_only_shown() -> anyhow::Result<()> {
    let mut browser = Browser::start()?;
    let (mut report, page_file) = page_of(&captures()[0]);
    let hostile =
        "\"'><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">";
    report.about.node = hostile.into();
    for verdict in &mut report.verdicts {
        verdict.diagnosis.summary = hostile.into();
        for way in [&mut verdict.failing, &mut verdict.healthy]
            .into_iter()
            .flatten()
        {
            for stage in &mut way.journey.path {
                stage.text = hostile.into();
            }
        }
    }
    let file = page_file.with_extension("hostile.html");
    std::fs::write(&file, page(&report))?;
    window(&mut browser, DESKTOP, "light")?;
    browser.open(&file)?;
    let shown = browser.evaluate("document.querySelector('.verdict .summary').textContent")?;
    assert_eq!(shown, hostile);
    assert_ne!(browser.evaluate("document.title")?, "run");
    assert_eq!(browser.evaluate("document.images.length")?, 0);
    assert_eq!(browser.complaints(), &[] as &[String]);

    // Were it written as it is, the page's policy would still keep it from running.
    let written = std::fs::read_to_string(&file)?;
    let broken = written.replace("<main>", &format!("<main>{hostile}"));
    assert_ne!(written, broken);
    std::fs::write(&file, broken)?;
    browser.open(&file)?;
    assert_eq!(browser.evaluate("document.images.length")?, 1);
    assert_ne!(browser.evaluate("document.title")?, "run");
    Ok(())
}

#[test]
fn the_way_that_failed_is_beside_one_of_the_same_trace_that_did_not() {
    let capture = captures()
        .into_iter()
        .find(|path| path.ends_with("vip-nodeport-unbound.pcapng"))
        .expect("the capture");
    let (report, file) = page_of(&capture);
    let [verdict] = report.verdicts.as_slice() else {
        panic!("{:?}", report.verdicts);
    };
    let (failing, healthy) = verdict
        .failing
        .as_ref()
        .zip(verdict.healthy.as_ref())
        .expect("both ways");
    assert_eq!(failing.journey.arrived, Some(false));
    assert_eq!(failing.journey.destination, "192.168.3.187:30000");
    assert_eq!(healthy.journey.arrived, Some(true));
    // From before the fix: the node's own address, from the same client.
    assert_eq!(healthy.journey.destination, "192.168.3.182:30000");
    assert!(verdict.flows.iter().all(|flow| flow.phase == 2));
    let page = std::fs::read_to_string(file).expect("the page");
    assert_eq!(page.matches("the two ways part").count(), 2);
    // All losses are the cause's.
    assert!(
        page.contains(
            "<a href=\"#verdict-1\">vip-nodeport-unbound</a></td><td class=\"number\">3<"
        )
    );
}

#[test]
fn of_a_damaged_file_the_page_shows_what_comes_before_and_says_so() {
    let whole = std::fs::read(&captures()[0]).expect("a capture");
    let cut = std::io::Cursor::new(whole[..whole.len() * 9 / 10].to_vec());
    let mut reader = Reader::from_stream(cut).expect("its beginning");
    let Reported { report, error } =
        report("cut.pcapng".into(), &mut reader, Filter::default(), |_| {}).expect("a report");
    assert!(error.is_some());
    assert!(!report.flows.is_empty());
    let page = page(&report);
    assert!(page.contains("The file is damaged."));
    assert!(page.contains(&error.expect("an error").to_string()));
}

/// A pcap of another program with one datagram of each of so many flows.
fn many_flows(count: u16) -> Vec<u8> {
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>()
    };
    // Version 2.4, Ethernet.
    let mut file = words(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1]);
    for number in 0..count {
        let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        packet.extend([
            0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        packet.extend((10_000 + number).to_be_bytes());
        packet.extend([0, 53, 0, 8, 0, 0]);
        let length = packet.len() as u32;
        file.extend(words(&[1_700_000_000, u32::from(number), length, length]));
        file.extend(packet);
    }
    file
}

#[test]
fn a_large_capture_gives_a_page_of_bounded_size_that_says_what_it_left_out() {
    let page_of = |flows| {
        let file = std::io::Cursor::new(many_flows(flows));
        let mut reader = Reader::from_stream(file).expect("a capture");
        let reported = report("many.pcap".into(), &mut reader, Filter::default(), |_| {});
        page(&reported.expect("a report").report)
    };
    let few = page_of(200);
    assert!(!few.contains("Left out"));
    let many = page_of(20_000);
    assert!(many.contains("Left out: 0 causes, 19800 flows"));
    assert!(
        many.len() < few.len() + 1_000,
        "{} {}",
        many.len(),
        few.len()
    );
}
