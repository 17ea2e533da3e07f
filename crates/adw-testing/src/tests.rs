use super::*;

#[test]
fn elements_are_bounded_one_by_one() {
    let tolerance = Tolerance::elements(0.1, 0.01);
    assert!(difference(&[0.1f64, 101.0], &[0.0, 100.0], tolerance).is_close());
    let found = difference(&[0.0f64, 0.2, 100.5], &[0.0, 0.0, 100.0], tolerance);
    assert!(!found.is_close());
    assert_eq!((found.worst_idx, found.got, found.expected), (1, 0.2, 0.0));
}

#[test]
fn l2_bounds_the_whole_and_names_the_worst_element() {
    let expected = [3.0f64, 4.0, 0.0];
    assert!(difference(&[3.0f64, 4.0, 0.5], &expected, Tolerance::l2(0.1)).is_close());
    let found = difference(&[3.0f64, 4.0, 0.6], &expected, Tolerance::l2(0.1));
    assert!(!found.is_close());
    assert_eq!(found.worst_idx, 2);
    assert!(found.to_string().contains("worst element 2: got 0.6, expected 0"), "{found}");
}

#[test]
fn nan_is_never_close_and_infinities_only_to_themselves() {
    for tolerance in [Tolerance::elements(1.0, 1.0), Tolerance::l2(1.0)] {
        for (got, expected) in [(f64::NAN, 0.0), (-f64::NAN, f64::NAN), (1.0, f64::INFINITY), (f64::INFINITY, 1.0)] {
            let found = difference(&[1.0, got], &[1.0, expected], tolerance);
            assert!(!found.is_close() && found.worst_idx == 1, "{got} {expected} {found}");
        }
        assert!(difference(&[f64::INFINITY], &[f64::INFINITY], tolerance).is_close());
        assert!(difference::<f64, f64>(&[], &[], tolerance).is_close());
    }
}

#[test]
#[should_panic(expected = "weights: number of elements")]
fn lengths_must_agree() {
    assert_close("weights", &[1.0f32], &[1.0f64, 2.0], tolerance::F32_STEPS);
}
