"""Response of a system from the fluctuations of its dipole moment: infrared spectrum and dielectric constant."""
