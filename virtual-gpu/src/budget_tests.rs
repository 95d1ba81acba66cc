use super::*;

fn counters(of: &[(&'static str, u64)]) -> Counters {
    Counters::from_named(of.iter().copied()).unwrap()
}

fn counted<'a>(counters: Counters) -> Counted<'a> {
    Counted { kernel: "norm", shape: "rows 4, width 640", counters, minimum_sectors: 100, schedule_sectors: Some(110) }
}

fn budgets(counters: Counters) -> Budgets {
    let mut budgets = Budgets::default();
    budgets.record(&counted(counters));
    budgets
}

#[test]
fn equal_counts_hold_exactly() {
    let counts = counters(&[("launches", 1), ("instructions", 500), ("sectors_read", 60), ("sectors_written", 50)]);
    assert_eq!(budgets(counts).compare(&counted(counts)).unwrap(), Held::Exactly);
}

#[test]
fn a_count_that_rose_fails_and_is_explained() {
    let budgets = budgets(counters(&[("instructions", 500), ("sectors_read", 80), ("mma", 8)]));
    let counts = counters(&[("instructions", 450), ("sectors_read", 120), ("mma", 8), ("barriers", 2)]);
    let error = budgets.compare(&counted(counts)).unwrap_err().to_string();
    assert_eq!(
        error,
        "norm at shape \"rows 4, width 640\":\n  \
         barriers rose from 0 to 2\n  \
         sectors_read rose from 80 to 120 (+50.0 %); at least 100 sectors must move in all\n  \
         instructions fell from 500 to 450 (-10.0 %)\n\
         where that is meant, record it with UNFLIP_UPDATE_BUDGETS=1 and say why in `reason`"
    );
}

#[test]
fn a_count_that_fell_passes_and_is_said() {
    let budgets = budgets(counters(&[("instructions", 500)]));
    let held = budgets.compare(&counted(counters(&[("instructions", 499)]))).unwrap();
    assert_eq!(held, Held::Fell("  instructions fell from 500 to 499 (-0.2 %)\n".to_owned()));
}

#[test]
fn conflicts_and_sectors_past_the_schedule_need_a_reason() {
    for (counts, text) in [
        (counters(&[("bank_conflicts", 3)]), "3 bank conflicts without a reason"),
        (counters(&[("sectors_read", 100), ("sectors_written", 27)]), "127 sectors, 1.15 times the schedule's 110"),
    ] {
        let mut budgets = budgets(counts);
        let error = budgets.compare(&counted(counts)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        budgets.0.get_mut("norm").unwrap().get_mut("rows 4, width 640").unwrap().reason = Some("because".to_owned());
        assert_eq!(budgets.compare(&counted(counts)).unwrap(), Held::Exactly);
    }
    let within = counters(&[("sectors_read", 100), ("sectors_written", 26)]);
    assert_eq!(budgets(within).compare(&counted(within)).unwrap(), Held::Exactly);
}

#[test]
fn other_minima_than_the_files_fail() {
    let counts = counters(&[("mma", 1)]);
    let error = budgets(counts).compare(&Counted { minimum_sectors: 99, schedule_sectors: None, ..counted(counts) });
    let text = error.unwrap_err().to_string();
    assert!(text.contains("minimum_sectors is 100 in the file, 99 by the test"), "{text}");
    assert!(text.contains("schedule_sectors is 110 in the file, nothing by the test"), "{text}");
}

#[test]
fn a_shape_without_a_budget_says_how_to_get_one() {
    let error = Budgets::default().compare(&counted(Counters::default())).unwrap_err().to_string();
    assert_eq!(
        error,
        "norm has no budget at shape \"rows 4, width 640\"; set UNFLIP_UPDATE_BUDGETS=1 to record what was counted"
    );
}

#[test]
fn the_text_is_stable_and_reads_back() {
    let mut budgets = budgets(counters(&[("mma", 8), ("bank_conflicts", 2)]));
    budgets.record(&Counted {
        kernel: "embed",
        shape: "a \"b\" \\c",
        schedule_sectors: None,
        ..counted(Counters::default())
    });
    budgets.0.get_mut("norm").unwrap().get_mut("rows 4, width 640").unwrap().reason = Some("rows of 65".to_owned());
    let text = budgets.to_toml();
    assert_eq!(Budgets::parse(&text).unwrap(), budgets);
    assert_eq!(Budgets::parse(&text).unwrap().to_toml(), text);
    let norm = "\n[norm.\"rows 4, width 640\"]\nreason = \"rows of 65\"\nminimum_sectors = 100\nschedule_sectors = 110\nmma = 8\n\
                bank_conflicts = 2\n";
    assert!(text.ends_with(norm), "{text}");
}

#[test]
fn a_wrong_file_is_told_with_its_place() {
    for (text, told) in [
        ("norm = 3", "norm is no table of shapes"),
        ("[norm]\nx = 3", "norm.\"x\" is no table of counts"),
        ("[norm.x]\nmma = -1", "norm.\"x\".mma is no count"),
        ("[norm.x]\nmna = 1", "norm.\"x\".mna is no counter"),
        ("[norm.x]\nreason = 1", "norm.\"x\".reason is no text"),
        ("[norm", "TOML parse error"),
    ] {
        let error = Budgets::parse(text).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn tests_side_by_side_record_into_one_file() {
    let folder = std::env::temp_dir().join(format!("budgets-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("budgets.toml");
    std::thread::scope(|scope| {
        for kernel in 0..8u64 {
            let path = &path;
            scope.spawn(move || {
                for shape in 0..8u64 {
                    let (kernel, shape) = (format!("kernel_{kernel}"), format!("shape {shape}"));
                    let one = counted(counters(&[("mma", 1)]));
                    update_file(path, &Counted { kernel: &kernel, shape: &shape, ..one }).unwrap();
                }
            });
        }
    });
    let budgets = Budgets::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(budgets.0.values().map(BTreeMap::len).sum::<usize>(), 64);
    let one = counted(counters(&[("mma", 1)]));
    let held = compare_file(&path, &Counted { kernel: "kernel_3", shape: "shape 5", ..one });
    assert_eq!(held.unwrap(), Held::Exactly);
    std::fs::remove_dir_all(&folder).unwrap();
    let error = compare_file(&path, &one).unwrap_err().to_string();
    assert!(error.contains("budgets.toml: "), "{error}");
}
