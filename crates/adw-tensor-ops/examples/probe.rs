use adw_tensor_ops::conv3d::{self, Input};
use adw_tensor_ops::norm_act::{self, NormAct};
use adw_tensor_ops::{Conv3dGeometry};
use candle_core::{DType, Device, Tensor};
fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    for (ci, co, size) in [(48usize,48usize,[40usize,56usize,40usize]),(96,48,[40,56,40]),(96,96,[20,28,20]),(192,192,[10,14,10]),(12,12,[40,56,40])] {
        let [d,h,w]=size;
        let x = Tensor::randn(0f32, 1., (1,d,h,w,ci), &Device::Cpu).unwrap();
        let wt = Tensor::randn(0f32, 1., (co,ci,3,3,3), &Device::Cpu).unwrap();
        let g = Conv3dGeometry::same([3;3],[1;3]);
        let gamma = Tensor::ones(ci, DType::F32, &Device::Cpu).unwrap();
        let beta = gamma.zeros_like().unwrap();
        let n = NormAct::default().coefficients(&norm_act::moments(&x).unwrap(), &gamma, &beta, None).unwrap();
        let inp = [Input{map:&x, norm: Some(&n)}];
        let (y,_) = conv3d::forward(&inp,&wt,g).unwrap();
        for (name, f) in [("fwd", Box::new(|| {conv3d::forward(&inp,&wt,g).unwrap();}) as Box<dyn Fn()>),
            ("plain", Box::new(|| {conv3d::forward_plain(&[Input::from(&x)],&wt,g).unwrap();})),
            ("gi", Box::new(|| {conv3d::grad_input((&y).into(),&wt,g,size,0..ci).unwrap();})),
            ("gw", Box::new(|| {conv3d::grad_weight(&inp,(&y).into(),g).unwrap();})),
            ("moments", Box::new(|| {norm_act::moments(&y).unwrap();})),
            ("bwd", Box::new(|| {norm_act::backward(&x,&n,&gamma,&beta,None,Some((&x,0.3)),Some(&x)).unwrap();})),
            ("wsum3", Box::new(|| {norm_act::weighted_sum(&[(&x,&n),(&x,&n),(&x,&n)],&[1.,1.,1.]).unwrap();})),
            ] {
            f(); adw_tensor_ops::phases();
            let mut ts = vec![];
            for _ in 0..7 { let t = std::time::Instant::now(); f(); ts.push(t.elapsed().as_secs_f64()*1e3); }
            let ph: Vec<f64> = adw_tensor_ops::phases().into_iter().map(|c| (c as f64/7./2.0e6/2.*100.).round()/100.).collect();
            ts.sort_by(f64::total_cmp);
            let gf = 2.*(d*h*w*ci*co*27) as f64/1e9;
            println!("{ci}->{co} {d}x{h}x{w} {name}: {:.2} ms ({:.0} GF/s) phases ms/thread@2GHz panel,in,gemm,out,mom {ph:?}", ts[3], gf/ts[3]*1e3);
        }
    }
}
