"""Cohorts: many cases through one model, on one machine or a cluster; what failed, what to look at first."""
